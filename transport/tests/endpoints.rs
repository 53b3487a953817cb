//! The endpoint syntax.

use std::path::PathBuf;

use vgpu_transport::endpoint::{Endpoint, EndpointError, parse_list};

#[test]
fn endpoints_read_back_as_written() {
    for text in [
        "xen:",
        "local:/run/vgpu/a.sock",
        "local:relative",
        "file:/mnt/vgpu",
        "local:a:b",
        "unix:/run/vgpu/b.sock",
        "tcp:gpu-host.example:7114",
        "tcp:192.0.2.1:1",
        "tcp:[::1]:65535",
        "tcp:[fe80::1%eth0]:7070",
        "tcp:[fe80::1%3]:7070",
        "xen:7",
        "xen:gpu-vm",
    ] {
        let endpoint: Endpoint = text.parse().expect(text);
        assert_eq!(endpoint.to_string(), text);
    }
}

#[test]
fn lists_keep_their_order() {
    assert_eq!(
        parse_list("xen:, local:/a ,file:/b"),
        Ok(vec![
            Endpoint::Xen,
            Endpoint::Local(PathBuf::from("/a")),
            Endpoint::File(PathBuf::from("/b")),
        ])
    );
}

#[test]
fn what_is_no_endpoint_says_why() {
    let refused = |text: &str| parse_list(text).expect_err(text);
    assert_eq!(refused(""), EndpointError::Empty);
    assert_eq!(refused("xen:,"), EndpointError::Empty);
    assert_eq!(
        refused("/run/a.sock"),
        EndpointError::NoScheme("/run/a.sock".into())
    );
    assert_eq!(refused("local:"), EndpointError::EmptyPath("local"));
    assert_eq!(refused("file:"), EndpointError::EmptyPath("file"));
    assert!(refused("file:").to_string().contains("file:/mnt/vgpu"));
    assert_eq!(refused("local:/a\0b"), EndpointError::Nul("local"));
    for domain in ["3/data", "a b", "a\nb"] {
        let text = format!("xen:{domain}");
        assert_eq!(refused(&text), EndpointError::NoDomain(domain.into()));
    }
    for address in [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "::1:80",
        "[::1]",
        "[host]:1",
        "[::1%]:1",
        "[::1%a b]:1",
        "[::1%interface-name-too-long]:1",
        "host%eth0:1",
        "[host%eth0]:1",
        "a b:1",
        "a/b:1",
    ] {
        let text = format!("tcp:{address}");
        assert_eq!(refused(&text), EndpointError::NoAddress(address.into()));
    }
    assert_eq!(
        refused("carrier-pigeon:x"),
        EndpointError::UnknownScheme("carrier-pigeon".into())
    );
}
