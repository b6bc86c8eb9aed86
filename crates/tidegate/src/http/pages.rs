//! The pages for people and machines that watch: `/metrics`, `/health`, `/debug/probes`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::Counts;
use crate::control::Control;
use crate::metrics::{self, Exposition};
use crate::stats::ShardHandle;

/// What the pages show.
#[derive(Clone)]
pub(super) struct Pages {
    pub control: Control,
    pub counts: Arc<Counts>,
    pub shards: Vec<ShardHandle>,
}

/// The paths served here when no upgrade is asked for.
pub(super) fn is_page(path: &str) -> bool {
    matches!(path, "/metrics" | "/health" | "/debug/probes")
}

pub(super) fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/debug/probes", get(probes))
        .method_not_allowed_fallback(async || {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                [(header::CONNECTION, "close")],
                "This page can only be read; use GET.\n",
            )
        })
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    let exposition = Exposition::accepted(accepted.map(|value| value.as_bytes()));
    let http = pages.counts.copy();
    // The answers of the shards are waited for elsewhere, so that upgrades go on meanwhile.
    match tokio::task::spawn_blocking(move || metrics::text(&pages.control, http, exposition)).await {
        Ok(text) => ([(header::CONTENT_TYPE, exposition.content_type())], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn health(State(pages): State<Pages>) -> (StatusCode, Json<Value>) {
    let shards_ended = pages.shards.iter().filter(|shard| shard.has_ended()).count();
    let status = match (pages.counts.draining.load(Ordering::Relaxed), shards_ended) {
        (true, _) => "draining",
        (false, 0) => "ok",
        (false, _) => "failed",
    };
    let code = if status == "ok" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "shards": pages.shards.len(),
        "shards_ended": shards_ended,
    });
    (code, Json(body))
}

async fn probes(State(pages): State<Pages>) -> Json<BTreeMap<String, Value>> {
    Json(pages.control.probes())
}
