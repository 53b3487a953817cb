//! Shared regions between two processes, one of which is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

fn vchan_testing(arguments: &str, path: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vchan-testing"))
        .args(arguments.split_whitespace())
        .args(["--timeout", "60"])
        .arg(format!("local:{}", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn succeeded(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Reads lines until one contains `text`; returns it.
#[track_caller]
fn wait_for(output: &mut impl BufRead, text: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "no `{text}`");
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn both_ways_revoked_and_refused_beyond_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan_testing("region-serve", &path);
    let client = vchan_testing("region-connect --to check", &path);
    let line = "region: 2097152 bytes both ways, revoked\n";
    assert_eq!(succeeded(client), line);
    let text = succeeded(server);
    assert!(
        text.starts_with(line) && text.contains("refused: "),
        "{text}"
    );
}

#[test]
fn the_ring_and_the_region_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = vchan_testing("region-serve", &path);
    let client = succeeded(vchan_testing(
        "region-connect --to bench --time 0.02",
        &path,
    ));
    succeeded(server);
    let lines: Vec<&str> = client.lines().collect();
    assert!(lines[0].contains("\"kind\":\"ring\""), "{client}");
    assert!(lines[1].contains("\"kind\":\"region\""), "{client}");
    assert!(lines[2].starts_with("ratio region / ring: "), "{client}");
}

/// A server and a client that both hold a region, and their output.
fn holding(path: &Path) -> [(Child, BufReader<ChildStdout>); 2] {
    let mut pair = [
        vchan_testing("region-serve", path),
        vchan_testing("region-connect --to hold", path),
    ];
    let outputs = pair.each_mut().map(|child| {
        let mut output = BufReader::new(child.stdout.take().unwrap());
        wait_for(&mut output, "region: mapped");
        output
    });
    let [server, client] = pair;
    let [from_server, from_client] = outputs;
    [(server, from_server), (client, from_client)]
}

#[test]
fn c25_the_owner_gets_its_region_back_when_the_peer_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let [(mut server, mut from_server), (mut client, _)] = holding(&dir.path().join("socket"));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_for(&mut from_server, "revoked after");
    server.wait().unwrap();
}

#[test]
fn c25_the_peer_unmaps_when_the_owner_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let [(mut server, _), (mut client, mut from_client)] = holding(&dir.path().join("socket"));
    server.kill().unwrap();
    server.wait().unwrap();
    let line = wait_for(&mut from_client, "after");
    assert!(
        line.contains("PeerClosed") && line.contains("mapped: false"),
        "{line}"
    );
    client.kill().unwrap();
    client.wait().unwrap();
}
