//! What somebody sees who watches a run: the step, how far it is, how calls go.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use osclient::Call;

use crate::engine::Witness;
use crate::record::{Class, Iteration, Record};

/// A line at the end of the terminal; nothing where there is none.
pub struct View {
    bar: ProgressBar,
    calls: AtomicU64,
    failed: AtomicU64,
    verbose: bool,
}

impl View {
    /// Shown on stderr, if it is a terminal and somebody wants it; line by line, if somebody wants that.
    pub fn new(wanted: bool, verbose: bool) -> View {
        let target =
            if wanted && !verbose { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) =
            ProgressStyle::with_template("{elapsed:>5} [{bar:24}] {pos:>3}/{len:<3} {prefix:<22} {msg}")
        {
            bar.set_style(style);
        }
        View { bar, calls: AtomicU64::new(0), failed: AtomicU64::new(0), verbose }
    }

    /// An iteration is over.
    pub fn ended(&self, _: &Iteration) {
        if !self.bar.is_hidden() {
            self.bar.finish_and_clear();
        }
    }
}

impl Witness for View {
    fn step(&self, step: &str, items: usize) {
        if self.verbose {
            eprintln!("step {step} ({items})");
        }
        if self.bar.is_finished() {
            self.bar.reset();
        }
        self.bar.set_prefix(step.to_owned());
        self.bar.set_position(0);
        self.bar.set_length(u64::try_from(items).unwrap_or(u64::MAX));
    }

    fn record(&self, record: &Record) {
        if self.verbose {
            eprintln!("  {:>9.3} s  {}", record.seconds(), record.told());
        }
        self.bar.inc(1);
        // Asked before: while it is suspended, the bar answers nobody.
        if record.class.failed() && !self.bar.is_hidden() {
            self.bar.suspend(|| eprintln!("{}", record.told()));
        }
    }

    fn call(&self, call: &Call, class: Class) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let bad = u64::from(class.failed());
        let failed = self.failed.fetch_add(bad, Ordering::Relaxed) + bad;
        let ms = call.total_us / 1000;
        self.bar.set_message(format!("{calls} calls, {failed} failed; last {ms} ms"));
    }
}
