//! The generic suite over memfd, eventfds and a Unix socket pair.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use vchan::conformance::{PATIENCE, cases};
use vchan::local;

/// Cases in which nobody dies: both ends in this process.
#[test]
fn every_case_over_a_socket_pair() {
    let mut ran = 0;
    for case in cases().into_iter().filter(|case| case.dies.is_none()) {
        let (server, client) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let served = std::thread::spawn(move || {
            let channel = local::serve_from_index(server, case.rings, case.first_index, deadline)
                .map_err(|error| error.to_string())?;
            (case.server)(channel)
        });
        let connected = local::connect_on(client, deadline)
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
