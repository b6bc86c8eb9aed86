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
    BroadcastConfig, BroadcastServer, Context, Event, Kind, Layer, Message, Next, Recovery, RunningServer,
    StartError, Tracking,
};

/// Text goes on in capitals; what is not text goes on as it is. A layer that keeps nothing can be a plain function.
fn shout(context: &mut Context<'_>, event: Event<'_>, next: Next<'_>) {
    match event {
        Event::Message(Message {
            kind: Kind::Text,
            payload,
        }) => {
            let payload = payload.to_ascii_uppercase();
            next.run(
                context,
                Event::Message(Message {
                    kind: Kind::Text,
                    payload: &payload,
                }),
            );
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
                context.send(Message {
                    kind: Kind::Text,
                    payload: b"too long: nobody heard this",
                });
            }
            event => next.run(context, event),
        }
    }
}

/// The server with its layers. The first layer is the outermost: `Recovery` catches what the ones inside it do wrong.
fn start(address: &str) -> Result<RunningServer, StartError> {
    let short = Short::default();
    let kept_back = Arc::clone(&short.kept_back);
    let config = BroadcastConfig {
        address: address.to_owned(),
        ..BroadcastConfig::default()
    };
    BroadcastServer::builder(config)
        .layer(Recovery::new())
        .layer(Tracking::new())
        .layer(short)
        .layer(shout)
        .probe("kept_back", move || kept_back.load(Ordering::Relaxed))
        .start()
}

fn main() -> Result<(), StartError> {
    let server = start("127.0.0.1:9002")?;
    println!(
        "listening on {}; probes at http://{}/debug/probes",
        server.url(),
        server.addr()
    );
    server.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::connect_async;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    #[tokio::test]
    async fn it_shouts_and_keeps_long_messages_back() {
        let server = start("127.0.0.1:0").unwrap();
        let (mut client, _) = connect_async(format!("{}/echo", server.url())).await.unwrap();
        client
            .send(Message::text("x".repeat(Short::BYTES_MAX + 1)))
            .await
            .unwrap();
        client.send(Message::text("hello")).await.unwrap();
        assert_eq!(
            client.next().await.unwrap().unwrap(),
            Message::text("too long: nobody heard this")
        );
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text("HELLO"));
        let probes = server.control().probes();
        assert_eq!(
            (&probes["kept_back"], &probes["total_messages"]),
            (&1.into(), &2.into())
        );
    }
}
