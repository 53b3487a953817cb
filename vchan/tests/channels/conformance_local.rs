//! The generic suite over memfd, eventfds and a Unix socket pair.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use vchan::{Format, Setup, local};
use vchan_testing::conformance::{STEP_LIMIT, cases};

/// Cases in which nobody dies: both ends in this process, each with the format it is ready for.
fn every_case(served: Format, connected: Format) {
    let mut ran = 0;
    for case in cases().into_iter().filter(|case| case.dies.is_none()) {
        let (server, client) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + STEP_LIMIT;
        let setup = Setup::new().format(served).first_index(case.first_index);
        let served = std::thread::spawn(move || {
            let channel = local::serve_with(&setup, server, case.rings, deadline)
                .map_err(|error| error.to_string())?;
            (case.server)(channel)
        });
        let setup = Setup::new().format(connected);
        let connected = local::connect_with(&setup, client, deadline)
            .map_err(|error| error.to_string())
            .and_then(case.client);
        let served = served.join().expect("the server's thread panicked");
        assert_eq!(
            (&served, &connected),
            (&Ok(()), &Ok(())),
            "case {}",
            case.name
        );
        ran += 1;
    }
    assert!(ran > 10, "only {ran} cases ran");
}

#[test]
fn every_case_in_the_extended_format() {
    every_case(Format::Extended, Format::Extended);
}

#[test]
fn every_case_in_the_classic_format() {
    every_case(Format::Classic, Format::Classic);
}

#[test]
fn the_format_is_what_both_sides_know() {
    for served in [Format::Extended, Format::Classic] {
        for connected in [Format::Extended, Format::Classic] {
            for (ring, classic) in [(64 << 10, 64 << 10), (2 << 20, 1 << 20)] {
                if served == Format::Classic && ring > classic {
                    continue;
                }
                let (server, client) = UnixStream::pair().unwrap();
                let deadline = Instant::now() + STEP_LIMIT;
                let echo = std::thread::spawn(move || {
                    let setup = Setup::new().format(served);
                    let mut channel = local::serve_with(&setup, server, ring, deadline).unwrap();
                    let mut bytes = vec![0; 3 * ring];
                    channel.read_exact(&mut bytes, deadline).unwrap();
                    channel.write_all(&bytes, deadline).unwrap();
                    channel.close(deadline).unwrap();
                    channel.format()
                });
                let setup = Setup::new().format(connected);
                let mut channel = local::connect_with(&setup, client, deadline).unwrap();
                let both = served == Format::Extended && connected == Format::Extended;
                let (format, size) = match both {
                    true => (Format::Extended, ring),
                    false => (Format::Classic, classic),
                };
                assert_eq!(channel.format(), format);
                assert_eq!(channel.ring_sizes(), size.into());
                let bytes: Vec<u8> = (0..251).cycle().take(3 * ring).collect();
                channel.write_all(&bytes, deadline).unwrap();
                let mut back = vec![0; bytes.len()];
                channel.read_exact(&mut back, deadline).unwrap();
                assert!(
                    bytes == back,
                    "{served} and {connected}: other bytes came back"
                );
                assert_eq!(echo.join().unwrap(), format);
            }
        }
    }
}
