//! Small grammars: xenstore's keys and paths, endpoints, the two files of the file protocol.

use std::time::{Duration, Instant};

use vchan::DomId;
use vchan::xen::keys::{ExtensionKey, parse_number};
use vchan::xen::path::{ChannelPath, PATH_MAX};
use vgpu_file_transport::two_file_grammar::{Command, parse_command, parse_response};
use vgpu_mediator::policy::GuestKey;
use vgpu_transport::endpoint::parse_list;

fn owned(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Values and names in xenstore, and names of guests.
pub(crate) fn xenstore(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(number) = parse_number(text) {
        assert!(number > 0 && number.to_string() == text);
    }
    if let Ok(key) = ExtensionKey::parse(text) {
        assert_eq!(key.encode(), text.to_ascii_lowercase());
    }
    if let Ok(path) = text.parse::<ChannelPath>() {
        assert_eq!(path.as_str(), text, "a path is taken as it is or refused");
        let longest = path.resolve(DomId(u16::MAX)) + "/event-channel";
        assert!(longest.len() <= PATH_MAX && longest.starts_with('/'));
        assert!(!longest.contains("//") && !longest.contains('\0'));
    }
    if let Ok(key) = text.parse::<GuestKey>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
}

pub(crate) fn xenstore_seeds() -> Vec<Vec<u8>> {
    owned(&[
        "4294967295",
        "17 000102030405060708090a0b0c0d0e0f",
        "/local/domain/7/data/vgpu/0123456789abcdef",
        "data/vchan/1",
        "domid:7",
        "name:web-1",
        "uuid:0a1b2c3d-0000-4000-8000-00000000beef",
    ])
}

/// `--endpoint`, `--listen`, `VGPU_ENDPOINT`.
pub(crate) fn endpoints(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for endpoint in parse_list(text).into_iter().flatten() {
        // Only white space at the ends is not part of an endpoint.
        let shown = endpoint.to_string();
        if shown.trim() == shown {
            assert_eq!(shown.parse(), Ok(endpoint));
        }
    }
}

pub(crate) fn endpoints_seeds() -> Vec<Vec<u8>> {
    owned(&[
        "xen:",
        "local:/run/vgpu/demo.sock, file:/dev/shm/vgpu",
        "unix:/x,tcp:host:1",
    ])
}

/// `command.txt` as the mediator reads it, `response.txt` as a client does.
pub(crate) fn guide_files(data: &[u8]) {
    if let Ok(command) = parse_command(data) {
        let digit = match command {
            Command::Nothing => "0\n",
            Command::VectorAdd => "1\n",
            Command::GpuInfo => "2\n",
        };
        assert_eq!(parse_command(digit.as_bytes()), Ok(command));
    }
    if let Ok(response) = parse_response(data) {
        assert_eq!(parse_response(&response.to_file()), Ok(response));
    }
    watch(data);
}

/// The same bytes as a file that is looked at repeatedly until it has settled.
fn watch(data: &[u8]) {
    use vgpu_file_transport::watch::{Action, Sight, Stamp, Watch};
    let start = Instant::now();
    let mut watch = Watch::new(None, start);
    let reason = String::from_utf8_lossy(data);
    let stamp = Stamp {
        inode: 1,
        size: data.len() as u64,
        modified_ns: 0,
        changed_ns: 0,
    };
    let mut actions = 0;
    for look in 0..6 {
        let now = start + Duration::from_secs(look);
        let sight = match data.first() {
            Some(b'#') => Sight::Unusable(&reason),
            _ => Sight::File { stamp, bytes: data },
        };
        match watch.see(sight, now) {
            Action::None => {}
            Action::Run(_) => actions += 1,
            Action::Answer(response) => {
                actions += 1;
                let file = response.to_file();
                assert_eq!(parse_response(&file), Ok(response), "{file:?}");
            }
        }
        assert!(!watch.pause(now).is_zero());
    }
    assert!(actions <= 1, "one writing counts once");
}

pub(crate) fn guide_files_seeds() -> Vec<Vec<u8>> {
    owned(&[
        "1\n",
        " 2\r\n",
        "0",
        "1 2\n",
        "4294967296\n",
        "1:Vector add PASSED: 1024 elements, 0 errors (cpu executor)\n",
        "#not a regular file",
    ])
}
