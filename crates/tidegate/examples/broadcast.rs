//! A broadcast server of one's own: two layers that a user wrote, and a probe.
//!
//! ```sh
//! cargo run --example broadcast
//! websocat ws://127.0.0.1:9002        # twice: what one says, the other hears in capitals
//! curl http://127.0.0.1:9002/debug/probes
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate::{
    BroadcastConfig, BroadcastServer, Context, Event, Kind, Layer, Message, Next, Recovery, StartError, Tracking,
};

/// Text goes on in capitals; what is not text goes on as it is. A layer that keeps nothing can be a plain function.
fn shout(context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
    match event {
        Event::Message(Message { kind: Kind::Text, payload }) => {
            let payload = payload.to_ascii_uppercase();
            next.run(context, Event::Message(Message { kind: Kind::Text, payload: &payload }));
        }
        event => next.run(context, event),
    }
}

/// Keeps messages over a size to itself and counts them. A layer that keeps something is a type; it serves all shards at
/// once, so what it keeps is atomic.
#[derive(Default)]
struct Short {
    kept_back: Arc<AtomicU64>,
}

impl Short {
    const BYTES_MAX: usize = 4096;
}

impl Layer for Short {
    fn handle(&self, context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
        match event {
            // Not running `next` ends the way of this message here.
            Event::Message(message) if message.payload.len() > Self::BYTES_MAX => {
                self.kept_back.fetch_add(1, Ordering::Relaxed);
                context.send(Message { kind: Kind::Text, payload: b"too long: nobody heard this" });
            }
            event => next.run(context, event),
        }
    }
}

fn main() -> Result<(), StartError> {
    let short = Short::default();
    let kept_back = Arc::clone(&short.kept_back);
    let config = BroadcastConfig { address: "127.0.0.1:9002".to_owned(), ..BroadcastConfig::default() };
    // The first layer is the outermost: `Recovery` catches what the ones inside it do wrong.
    let server = BroadcastServer::builder(config)
        .layer(Recovery::new())
        .layer(Tracking::new())
        .layer(short)
        .layer(shout)
        .probe("kept_back", move || kept_back.load(Ordering::Relaxed))
        .start()?;
    println!("listening on {}; probes at http://{}/debug/probes", server.url(), server.addr());
    server.join();
    Ok(())
}
