//! How far a run is, told by the machine's thread and drawn by the one that waits for it.
//!
//! On a terminal it is a bar, elsewhere one line for each phase; always on standard error.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
enum Span {
    /// So many connections are to be open.
    Connections(u64),
    /// It takes so long.
    Time(Duration),
    /// Nobody knows how long it takes; not long.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    name: &'static str,
    span: Span,
    since: Instant,
    /// Counts stages, so that a look can tell that it is another one.
    number: u32,
}

/// See the module's page. Shared by the two threads.
#[derive(Debug)]
pub(crate) struct Progress {
    open: AtomicI64,
    stage: Mutex<Stage>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        let stage = Stage {
            name: "starting",
            span: Span::Unknown,
            since: Instant::now(),
            number: 0,
        };
        Progress {
            open: AtomicI64::new(0),
            stage: Mutex::new(stage),
        }
    }

    /// So many connections opened, or closed if negative.
    pub(crate) fn add_open(&self, count: i64) {
        self.open.fetch_add(count, Ordering::Relaxed);
    }

    /// `count` connections are being opened.
    pub(crate) fn fill(&self, count: u64) {
        self.set("connecting", Span::Connections(count));
    }

    /// A phase that takes `duration`.
    pub(crate) fn time(&self, name: &'static str, duration: Duration) {
        self.set(name, Span::Time(duration));
    }

    /// A short phase.
    pub(crate) fn enter(&self, name: &'static str) {
        self.set(name, Span::Unknown);
    }

    fn set(&self, name: &'static str, span: Span) {
        let mut stage = self.lock();
        *stage = Stage {
            name,
            span,
            since: Instant::now(),
            number: stage.number + 1,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stage> {
        // A stage is plain data; it is whole even if its last writer panicked.
        self.stage
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Draws until `ended` says so.
    pub(crate) fn draw(&self, quiet: bool, ended: impl Fn() -> bool) {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = if on_terminal && !quiet {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{msg:12} [{bar:40.cyan/blue}] {prefix}")
            .expect("the template is valid")
            .progress_chars("━╸─");
        bar.set_style(style);
        let mut seen = 0;
        while !ended() {
            thread::sleep(LOOK_EVERY);
            let stage = *self.lock();
            let (done, total, text) = self.measure(stage);
            if stage.number != seen {
                seen = stage.number;
                bar.set_message(stage.name);
                match stage.span {
                    _ if on_terminal || quiet => {}
                    Span::Connections(count) => eprintln!("{} {count}", stage.name),
                    Span::Time(duration) => eprintln!("{} {} s", stage.name, duration.as_secs_f64()),
                    Span::Unknown => {}
                }
            }
            bar.set_length(total);
            bar.set_position(done);
            bar.set_prefix(text);
        }
        bar.finish_and_clear();
    }

    /// How much of how much is done, and that in words.
    fn measure(&self, stage: Stage) -> (u64, u64, String) {
        match stage.span {
            Span::Unknown => (0, 1, String::new()),
            Span::Connections(total) => {
                let open = self.open.load(Ordering::Relaxed).max(0) as u64;
                (open, total, format!("{open}/{total}"))
            }
            Span::Time(total) => {
                let gone = stage.since.elapsed().min(total);
                let text = format!("{:.1}/{:.1} s", gone.as_secs_f64(), total.as_secs_f64());
                (gone.as_millis() as u64, total.as_millis() as u64, text)
            }
        }
    }
}
