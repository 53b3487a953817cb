#![forbid(unsafe_code)]
//! The same between two processes or domains: an honest channel beside the targets keeps the two
//! sides in step. An error on it is an error of the run, not of the victim.

use std::time::{Duration, Instant};

use vchan::Transport;

use super::liar::Liar;
use super::victim::Victim;
use super::{
    Fresh, Options, Report, Target, Watchdog, check_round, corrupt, let_go, storm, survive_storm,
};
use vchan::Channel;

/// Time limit for the other side's half of a round.
const ROUND_LIMIT: Duration = Duration::from_secs(90);
/// From the victim, once: its ends of all targets are set up.
const READY: u64 = 0;
/// In place of a round: the storm begins.
const STORM: u64 = u64::MAX;
/// The longest time for which a wait on the honest channel polls before it sleeps.
const CONTROL_SPIN: Duration = Duration::from_millis(1);

/// The honest channel, which carries numbers.
struct Numbers(Channel);

impl Numbers {
    fn send(&mut self, number: u64) -> Result<(), String> {
        let deadline = Instant::now() + ROUND_LIMIT;
        self.0
            .write_all(&number.to_le_bytes(), deadline)
            .map_err(|error| format!("the other side is gone: {error}"))
    }

    fn receive(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        Transport::read_exact(&mut self.0, &mut bytes, Instant::now() + ROUND_LIMIT)
            .map_err(|error| format!("the other side is gone: {error}"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The lying side of a run, over `targets`; `control` stays honest.
///
/// # Errors
/// The victim's reason, if it ended early.
pub fn lie_to(mut control: Channel, targets: Vec<Target>, options: &Options) -> Result<(), String> {
    control.set_spin(CONTROL_SPIN);
    let mut control = Numbers(control);
    for number in [options.seed, options.from, options.states] {
        control.send(number)?;
    }
    // The server of the last target may still be looking for its client in the pages, and its
    // rendezvous must be honest.
    control.receive()?;
    let liars: Vec<Liar> = targets
        .into_iter()
        .map(|target| Liar::new(target.0))
        .collect();
    let mut fresh: Fresh = 0;
    for round in options.first_round().. {
        corrupt(&liars, options.seed, round, fresh);
        control.send(round)?;
        fresh = control.receive()?;
        if fresh == STORM {
            break;
        }
    }
    let mut looks = 0u32;
    storm(&liars, options.seed, || {
        looks += 1;
        looks.is_multiple_of(16) && !matches!(control.0.try_read(&mut [0; 8]), Ok(None))
    });
    Ok(())
}

/// The victim's side.
///
/// # Errors
/// The victim's violation, and how to reproduce it.
pub fn run_victim(
    mut control: Channel,
    targets: Vec<Target>,
    announce: impl FnOnce(&Options),
) -> Result<Report, String> {
    control.set_spin(CONTROL_SPIN);
    let mut control = Numbers(control);
    let options = Options {
        seed: control.receive()?,
        from: control.receive()?,
        states: control.receive()?,
    };
    announce(&options);
    control.send(READY)?;
    let mut report = Report::default();
    let mut victims: Vec<Victim> = targets
        .into_iter()
        .map(|target| Victim::new(target.0, &mut report))
        .collect();
    let watchdog = Watchdog::start(options.seed);
    let mut fresh = 0;
    loop {
        let round = control.receive()?;
        watchdog.pat(round);
        fresh = check_round(&mut victims, options.seed, round, fresh, &mut report)?;
        let_go(&mut victims, round + 1);
        if report.states >= options.states {
            break;
        }
        control.send(fresh)?;
    }
    victims.iter_mut().for_each(Victim::end);
    control.send(STORM)?;
    survive_storm(&mut victims, &options, &watchdog, &mut report)?;
    control.send(0)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vchan::error::Result;
    use vchan::layout::{Format, Role};
    use vchan::{Setup, testing};

    use super::*;
    use crate::hostile::kinds;

    fn control() -> Result<(Channel, Channel)> {
        let (one, other) = UnixStream::pair().expect("a socket pair");
        let deadline = Instant::now() + ROUND_LIMIT;
        let server = std::thread::spawn(move || {
            testing::serve_on(&Setup::new(), one, 4096.into(), deadline)
        });
        let client = testing::connect_on(&Setup::new(), other, deadline)?;
        let server = server.join().expect("the server's thread")?;
        Ok((testing::channel(server)?, testing::channel(client)?))
    }

    #[test]
    fn the_liar_leaves_the_pages_alone_until_the_victim_is_ready() -> Result<()> {
        let (format, rings) = kinds().last().expect("kinds");
        assert_eq!(format, Format::Extended);
        let (liar, victim) = Target::pair(Role::Server, format, rings)?;
        let (ours, theirs) = control()?;
        let before = victim.0.picture();
        let options = Options {
            seed: 1,
            from: 0,
            states: 10,
        };
        let lying = std::thread::spawn(move || lie_to(ours, vec![liar], &options));
        let mut theirs = Numbers(theirs);
        for _ in 0..3 {
            theirs.receive().expect("the options");
        }

        let mut round = [0; 8];
        let wait = Instant::now() + Duration::from_millis(200);
        Transport::read_exact(&mut theirs.0, &mut round, wait).expect_err("a round began");
        assert_eq!(victim.0.picture(), before);

        theirs.send(READY).expect("the liar waits");
        theirs.receive().expect("the first round");
        drop(theirs);
        lying
            .join()
            .expect("the liar's thread")
            .expect_err("the victim is gone");
        Ok(())
    }
}
