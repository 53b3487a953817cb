//! A directory served by a thread of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vgpu_file_transport::two_file_grammar::{Command, vector_add_passed};
use vgpu_file_transport::{ServeError, Stop, serve};

/// Longest wait of a test.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Dropping it stops the thread.
pub(crate) struct Served {
    pub(crate) path: PathBuf,
    runs: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    /// Serves `path` and waits until it answers `0:Ready`.
    pub(crate) fn start(path: &Path) -> Served {
        let runs = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (path, runs, stop) = (path.to_owned(), runs.clone(), stop.clone());
            thread::spawn(move || {
                let mut run = |command| match command {
                    Command::VectorAdd => {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok(vector_add_passed(1024, "test executor"))
                    }
                    Command::GpuInfo => Err("no GPU\nhere".to_owned()),
                    Command::Nothing => unreachable!("never handed to run"),
                };
                serve(
                    &path,
                    &mut run,
                    Stop::when(&stop).or_at(Instant::now() + WATCHDOG),
                )
            })
        };
        let served = Served {
            path: path.into(),
            runs,
            stop,
            thread: Some(thread),
        };
        served.wait_for("0:Ready\n");
        served
    }

    /// The contents of `response.txt`, or nothing.
    pub(crate) fn response(&self) -> String {
        fs::read_to_string(self.path.join("response.txt")).unwrap_or_default()
    }

    /// Waits until `response.txt` holds `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_until(&format!("{text:?}"), || self.response() == text);
    }

    /// Waits until so many vector adds have begun.
    pub(crate) fn wait_for_runs(&self, runs: usize) {
        self.wait_until(&format!("{runs} runs"), || self.runs() == runs);
    }

    fn wait_until(&self, what: &str, reached: impl Fn() -> bool) {
        let deadline = Instant::now() + WATCHDOG;
        while !reached() {
            assert!(
                Instant::now() < deadline,
                "not {what}: {} runs, {:?}",
                self.runs(),
                self.response()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Number of vector adds run so far.
    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    /// Stops the thread and returns its result.
    pub(crate) fn stop(mut self) -> Result<(), ServeError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), ServeError> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take() {
            Some(thread) => thread.join().expect("the serving thread panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = self.join();
        }
    }
}
