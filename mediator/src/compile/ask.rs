//! The worker's side: it asks the broker for a compiler and gives that its guest's source.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vgpu_protocol::session::server::Failure;
use vgpu_protocol::status::ErrorCode;

use super::{Compile, Compiled, Job, wire};

/// How long a guest waits for a compiler while others have all of them.
const COMPILER_WAIT_LIMIT: Duration = Duration::from_secs(120);

/// Time for the broker to end a compiler after its limit, and to report that.
const COMPILER_END_TIME: Duration = Duration::from_secs(10);

/// A word of the broker's about a compiler.
#[derive(Debug)]
pub(crate) enum Word {
    /// Its socket, and how long it may compile.
    Given(UnixStream, Duration),
    /// No compiler is available, for this reason.
    None(String),
    /// It has ended, at its deadline or by itself.
    Ended { late: bool },
}

/// The way to compilers by the broker.
pub(crate) struct ByBroker {
    /// Asks for one that is for this version of the driver.
    ask: Box<dyn Fn(u32) + Send + Sync>,
    /// Held for as long as something is compiled.
    words: Mutex<Receiver<Word>>,
}

impl fmt::Debug for ByBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByBroker").finish_non_exhaustive()
    }
}

impl ByBroker {
    pub(crate) fn new(ask: impl Fn(u32) + Send + Sync + 'static, words: Receiver<Word>) -> Self {
        Self {
            ask: Box::new(ask),
            words: Mutex::new(words),
        }
    }
}

impl Compile for ByBroker {
    fn compile(&self, job: &Job) -> Result<Compiled, Failure> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        // One that came too late for the last source.
        while words.try_recv().is_ok() {}
        (self.ask)(job.order.driver);
        let asked = Instant::now();
        loop {
            match words.recv_timeout(COMPILER_WAIT_LIMIT.saturating_sub(asked.elapsed())) {
                Ok(Word::Given(stream, limit)) => return talk(&stream, job, limit, &words),
                Ok(Word::None(why)) => return Err(failure(ErrorCode::Unsupported, why)),
                // Of the last source.
                Ok(Word::Ended { .. }) => {}
                Err(_) => {
                    let text = format!(
                        "no compiler was free for {} s",
                        COMPILER_WAIT_LIMIT.as_secs()
                    );
                    return Err(failure(ErrorCode::Timeout, text));
                }
            }
        }
    }
}

fn failure(code: ErrorCode, text: impl Into<String>) -> Failure {
    Failure {
        status: code.into(),
        text: text.into(),
    }
}

/// Has `job` compiled by the process behind `stream`, which ends after `limit`; `words` say how it ended.
fn talk(
    stream: &UnixStream,
    job: &Job,
    limit: Duration,
    words: &Receiver<Word>,
) -> Result<Compiled, Failure> {
    let began = Instant::now();
    let mut timed = Timed {
        stream,
        deadline: began + limit + COMPILER_END_TIME,
    };
    // It may have ended, and have said why before.
    let sent = wire::write_job(&mut timed, job);
    match wire::read_outcome(&mut timed) {
        Ok(outcome) => outcome,
        // The broker's clock counts from before the socket came.
        Err(_) if was_late(words) || began.elapsed() >= limit => {
            let text = format!("the source was not compiled within {} s", limit.as_secs());
            Err(failure(ErrorCode::Timeout, text))
        }
        Err(error) => {
            let error = sent.err().unwrap_or(error);
            log::debug!("the compiler gave no answer: {error}");
            let text = "the compiler ended without an answer: the source may need more memory or processor time \
                        than it may have";
            Err(failure(ErrorCode::Internal, text))
        }
    }
}

/// Waits for the broker's word that the compiler has ended: whether at its deadline.
fn was_late(words: &Receiver<Word>) -> bool {
    match words.recv_timeout(COMPILER_END_TIME) {
        Ok(Word::Ended { late }) => late,
        Ok(_) | Err(_) => false,
    }
}

/// A stream of which all together may take until a deadline.
struct Timed<'s> {
    stream: &'s UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const COMPILED: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'p', b't', b'x'];

    fn compile(words: impl IntoIterator<Item = Word>) -> Result<Compiled, Failure> {
        let (give, receive) = mpsc::channel();
        // Too late for a source before.
        give.send(Word::None("of another source".to_owned()))
            .unwrap();
        let words: Vec<Word> = words.into_iter().collect();
        let asked = Mutex::new(Some((give, words)));
        let by_broker = ByBroker::new(
            move |driver| {
                assert_eq!(driver, 7);
                let (give, words) = asked.lock().unwrap().take().expect("asked once");
                words.into_iter().for_each(|word| give.send(word).unwrap());
            },
            receive,
        );
        let mut job = Job {
            order: Default::default(),
            texts: vec![b'x'; 1 << 20],
        };
        job.order.driver = 7;
        by_broker.compile(&job)
    }

    #[test]
    fn what_the_compiler_answers_comes_back() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            assert_eq!(wire::read_job(&mut &theirs).unwrap().texts.len(), 1 << 20);
            (&theirs).write_all(COMPILED).unwrap();
        });
        let of_the_last = Word::Ended { late: true };
        let given = Word::Given(ours, Duration::from_secs(60));
        assert_eq!(compile([of_the_last, given]).unwrap().ptx, b"ptx");
        let refused = compile([Word::None("it is off".to_owned())]).unwrap_err();
        assert_eq!(refused, failure(ErrorCode::Unsupported, "it is off"));
    }

    #[test]
    fn one_that_ends_is_told_from_one_that_took_too_long() {
        for (limit, late, code) in [
            (60, Some(false), ErrorCode::Internal),
            // By the broker's clock, whatever the worker's says.
            (60, Some(true), ErrorCode::Timeout),
            (60, None, ErrorCode::Internal),
            (0, None, ErrorCode::Timeout),
        ] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(theirs);
            let given = Word::Given(ours, Duration::from_secs(limit));
            let ended = late.map(|late| Word::Ended { late });
            let failed = compile([given].into_iter().chain(ended));
            assert_eq!(failed.unwrap_err().status, code.into(), "{limit} {late:?}");
        }
    }
}
