//! A guest that keeps to no rule, against a mediator's transport on a real directory. Each attack
//! ends its own session with an error that names it, within the stated time, and touches nothing
//! outside.

mod attacks;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vgpu_file_transport::SessionName;
use vgpu_file_transport::session::file_name::segment;
use vgpu_file_transport::session::rules::SILENCE;
use vgpu_file_transport::session::segment::{Header, Kind, Role};
use vgpu_file_transport::session::{FileTransport, accept};
use vgpu_transport::Transport;

use attacks::ATTACKS;

const SESSION: SessionName = SessionName::new([5; 16]);
const WATCHDOG: Duration = Duration::from_secs(60);

fn deadline() -> Instant {
    Instant::now() + WATCHDOG
}

fn header(kind: Kind, number: u64, offset: u64) -> Header {
    Header {
        number,
        offset,
        ..Header::first(Role::Guest, kind, SESSION, [9; 16])
    }
}

/// A hostile guest: free access to its session's directory.
struct Guest {
    _root: tempfile::TempDir,
    served: PathBuf,
    path: PathBuf,
    /// A file that it has no business with.
    secret: PathBuf,
}

impl Guest {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let served = root.path().join("served");
        let path = served.join("sessions").join(SESSION.to_string());
        fs::create_dir_all(&path).unwrap();
        let secret = root.path().join("secret");
        fs::write(&secret, header(Kind::Data, 1, 0).encode(b"secret")).unwrap();
        let guest = Self {
            _root: root,
            served,
            path,
            secret,
        };
        guest.put(Kind::Beat, 1, &header(Kind::Beat, 1, 0).encode(&[]));
        guest
    }

    fn name(&self, kind: Kind, number: u64) -> PathBuf {
        self.path.join(segment(Role::Guest, kind, number))
    }

    fn put(&self, kind: Kind, number: u64, bytes: &[u8]) {
        let temporary = self.path.join(".made");
        fs::write(&temporary, bytes).unwrap();
        fs::rename(&temporary, self.name(kind, number)).unwrap();
    }

    fn data(&self, number: u64, offset: u64, payload: &[u8]) {
        self.put(
            Kind::Data,
            number,
            &header(Kind::Data, number, offset).encode(payload),
        );
    }

    fn accept(&self) -> FileTransport {
        accept(&self.served, None, SESSION, 7, SILENCE, deadline()).unwrap()
    }
}

#[test]
fn each_attack_ends_its_own_session_and_says_what_is_wrong() {
    thread::scope(|scope| {
        for (what, attack, wanted) in ATTACKS {
            scope.spawn(move || {
                let guest = Guest::new();
                let secret = fs::read(&guest.secret).unwrap();
                let mut mediator = guest.accept();
                attack(&guest);
                let mut buffer = [0; 4096];
                let error = loop {
                    match mediator.read_exact(&mut buffer[..4], deadline()) {
                        // The bytes that were valid before the attack.
                        Ok(()) => assert_eq!(&buffer[..4], b"once", "{what}"),
                        Err(error) => break error,
                    }
                };
                assert!(error.to_string().contains(wanted), "{what}: {error}");
                // For good.
                assert!(mediator.try_write(b"x").is_err(), "{what}");
                drop(mediator);
                assert_eq!(fs::read(&guest.secret).unwrap(), secret, "{what}");
            });
        }
    });
}

#[test]
fn a_directory_under_a_name_of_the_mediators_ends_the_session() {
    let guest = Guest::new();
    let name = guest.path.join(segment(Role::Mediator, Kind::Data, 1));
    fs::create_dir_all(name.join("full")).unwrap();
    let mut mediator = guest.accept();
    mediator.write_all(b"answer", deadline()).unwrap();
    mediator.flush(deadline()).unwrap();
    let error = mediator.read_exact(&mut [0; 1], deadline()).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
}

#[test]
fn a_link_under_a_name_of_the_mediators_is_replaced_not_followed() {
    let guest = Guest::new();
    let name = guest.path.join(segment(Role::Mediator, Kind::Data, 1));
    symlink(&guest.secret, &name).unwrap();
    let before = fs::read(&guest.secret).unwrap();
    let mut mediator = guest.accept();
    mediator.write_all(b"answer", deadline()).unwrap();
    mediator.flush(deadline()).unwrap();
    let deadline = deadline();
    while fs::symlink_metadata(&name).unwrap().is_symlink() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fs::read(&guest.secret).unwrap(), before);
}

#[test]
fn a_file_that_arrives_late_or_changes_while_it_is_read_is_taken_whole_or_not() {
    let guest = Guest::new();
    let mut mediator = guest.accept();
    let whole = header(Kind::Data, 1, 0).encode(&[7; 100_000]);
    // In place, as no honest guest does: in pieces, and with other bytes in between.
    let mut file = File::create(guest.name(Kind::Data, 1)).unwrap();
    for round in 0..20u8 {
        file.seek(SeekFrom::Start(0)).unwrap();
        let upto = whole.len() * usize::from(round) / 20;
        file.write_all(&whole[..upto]).unwrap();
        file.write_all(&vec![round; 1000]).unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&whole).unwrap();
    file.set_len(whole.len() as u64).unwrap();
    let mut buffer = vec![0; 100_000];
    mediator.read_exact(&mut buffer, deadline()).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 7));
}

#[test]
fn a_forged_claim_keeps_the_mediator_away() {
    let guest = Guest::new();
    fs::write(guest.path.join("m-claim"), "0000000000000007\n").unwrap();
    let error = accept(&guest.served, None, SESSION, 7, SILENCE, deadline()).unwrap_err();
    assert!(error.to_string().contains("was taken before"), "{error}");
}

#[test]
fn a_session_outside_is_not_reached_by_links() {
    let guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    let link = guest.served.join("web-1");
    fs::create_dir_all(outside.path().join("sessions").join(SESSION.to_string())).unwrap();
    symlink(outside.path(), &link).unwrap();
    let name = "web-1".parse().unwrap();
    assert!(accept(&guest.served, Some(&name), SESSION, 7, SILENCE, deadline()).is_err());
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    symlink(outside.path().join("sessions"), link.join("sessions")).unwrap();
    assert!(accept(&guest.served, Some(&name), SESSION, 7, SILENCE, deadline()).is_err());
    let path: &Path = outside.path();
    let session = path.join("sessions").join(SESSION.to_string());
    assert_eq!(fs::read_dir(session).unwrap().count(), 0);
}
