//! A hostile guest's attacks in its session's directory: by name, and with the answer it gets.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use vgpu_file_transport::SessionName;
use vgpu_file_transport::session::segment::{HEADER, Header, Kind, Role};

use super::{Guest, header};

/// Overwrites a field of a segment and gives it a matching checksum.
fn forged(at: usize, field: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut file = header(Kind::Data, 1, 0).encode(payload);
    file[at..at + field.len()].copy_from_slice(field);
    file[76..80].fill(0);
    let sum = crc32c::crc32c(&file);
    file[76..80].copy_from_slice(&sum.to_le_bytes());
    file
}

pub(super) type Attack = (&'static str, fn(&Guest), &'static str);

pub(super) const ATTACKS: &[Attack] = &[
    (
        "a link to a file outside",
        |guest| symlink(&guest.secret, guest.name(Kind::Data, 1)).unwrap(),
        "no regular file",
    ),
    (
        "a link to nothing",
        |guest| symlink("/nowhere", guest.name(Kind::Data, 1)).unwrap(),
        "no regular file",
    ),
    (
        "a FIFO",
        |guest| mkfifo(&guest.name(Kind::Data, 1), Mode::S_IRWXU).unwrap(),
        "no regular file",
    ),
    (
        "a FIFO for a beat",
        |guest| mkfifo(&guest.name(Kind::Beat, 2), Mode::S_IRWXU).unwrap(),
        "no regular file",
    ),
    (
        "a directory",
        |guest| fs::create_dir(guest.name(Kind::Data, 1)).unwrap(),
        "no regular file",
    ),
    (
        "a socket",
        |guest| drop(UnixListener::bind(guest.name(Kind::Data, 1)).unwrap()),
        "no regular file",
    ),
    (
        "an end cut off for good",
        |guest| {
            let file = header(Kind::Data, 1, 0).encode(&[1; 1000]);
            guest.put(Kind::Data, 1, &file[..500]);
        },
        "it ends after 500 bytes, before its end",
    ),
    (
        "an empty file",
        |guest| guest.put(Kind::Data, 1, b""),
        "it ends after 0 bytes",
    ),
    (
        "a wrong checksum",
        |guest| {
            let mut file = header(Kind::Data, 1, 0).encode(b"data");
            file[HEADER] ^= 1;
            guest.put(Kind::Data, 1, &file);
        },
        "its checksum is wrong",
    ),
    (
        "no segment at all",
        |guest| guest.put(Kind::Data, 1, &[b'x'; 200]),
        "it does not begin like a segment",
    ),
    (
        "a segment again under another number",
        |guest| {
            guest.data(1, 0, b"once");
            fs::copy(guest.name(Kind::Data, 1), guest.name(Kind::Data, 2)).unwrap();
        },
        "its number is that of another file",
    ),
    (
        "another session's segment",
        |guest| {
            let other = Header {
                session: SessionName::new([6; 16]),
                ..header(Kind::Data, 1, 0)
            };
            guest.put(Kind::Data, 1, &other.encode(b"data"));
        },
        "its session is that of another file",
    ),
    (
        "another process's segment",
        |guest| {
            let other = Header {
                writer: [1; 16],
                ..header(Kind::Data, 1, 0)
            };
            guest.put(Kind::Data, 1, &other.encode(b"data"));
        },
        "its writer is that of another file",
    ),
    (
        "the mediator's own side",
        |guest| {
            let other = Header {
                role: Role::Mediator,
                ..header(Kind::Data, 1, 0)
            };
            guest.put(Kind::Data, 1, &other.encode(b"data"));
        },
        "its writer's side is that of another file",
    ),
    (
        "a huge file",
        |guest| {
            let file = File::create(guest.path.join(".huge")).unwrap();
            file.set_len(1 << 40).unwrap();
            fs::rename(guest.path.join(".huge"), guest.name(Kind::Data, 1)).unwrap();
        },
        "is too long",
    ),
    (
        "a long beat",
        |guest| guest.put(Kind::Beat, 2, &[0; 81]),
        "is too long",
    ),
    (
        "a length that is not the file's",
        |guest| guest.put(Kind::Data, 1, &forged(72, &3u32.to_le_bytes(), b"data")),
        "its length makes no sense",
    ),
    (
        "a length beyond all",
        |guest| guest.put(Kind::Data, 1, &forged(72, &[0xff; 4], b"data")),
        "its length makes no sense",
    ),
    (
        "a later version",
        |guest| guest.put(Kind::Data, 1, &forged(8, &[2], b"data")),
        "it has version 2",
    ),
    (
        "an unknown kind",
        |guest| guest.put(Kind::Data, 1, &forged(11, &[3], b"data")),
        "its kind makes no sense",
    ),
    (
        "unknown flags",
        |guest| guest.put(Kind::Data, 1, &forged(12, &[0x80], b"data")),
        "its flags makes no sense",
    ),
    (
        "another place in the stream",
        |guest| guest.data(1, 77, b"data"),
        "begins at byte 77 of the stream, not at 0",
    ),
    (
        "taking what was never sent",
        |guest| {
            let beat = Header {
                taken: 1000,
                ..header(Kind::Beat, 2, 0)
            };
            guest.put(Kind::Beat, 2, &beat.encode(&[]));
        },
        "says it has taken segment 1000",
    ),
    (
        "thousands of names",
        |guest| {
            for number in 0..2000 {
                File::create(guest.path.join(format!("junk-{number}"))).unwrap();
            }
        },
        "holds more than 1024 names",
    ),
    (
        "thousands of names that begin with a dot",
        |guest| {
            for number in 0..2000 {
                File::create(guest.path.join(format!(".junk-{number}"))).unwrap();
            }
        },
        "holds more than 1024 names",
    ),
    (
        "another directory in its place",
        |guest| {
            fs::rename(&guest.path, guest.served.join("sessions/aside")).unwrap();
            fs::create_dir(&guest.path).unwrap();
        },
        "the session's directory is gone",
    ),
    (
        "a link in its place",
        |guest| {
            let aside = guest.served.join("sessions/aside");
            fs::rename(&guest.path, &aside).unwrap();
            symlink(&aside, &guest.path).unwrap();
        },
        "the session's directory is gone",
    ),
    (
        "a device",
        |guest| {
            let zero = makedev(1, 5);
            if mknod(
                &guest.name(Kind::Data, 1),
                SFlag::S_IFCHR,
                Mode::S_IRWXU,
                zero,
            )
            .is_err()
            {
                test_skip::skipped("devices cannot be made here; a link to one stands in");
                symlink("/dev/zero", guest.name(Kind::Data, 1)).unwrap();
            }
        },
        "no regular file",
    ),
];
