//! Broken bodies: each must be refused with the field and its error.

use crate::bodies::Bodies;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use vgpu_protocol::handle::{Handle, HandleKind};
use vgpu_protocol::op::field::FieldError;
use vgpu_protocol::op::{
    Body, BodyError, CopyRowsFromDevice, CopyRowsToDevice, Exchange, FenceReply, FillRange, Hello,
    HelloReply, InfoReply, MAX_CONTROL_BODY, MemoryPoolInfo, ModuleCompile, ModuleLoad, Op, Ping,
    StreamSynchronize,
};
use vgpu_protocol::status::{MAX_ERROR_TEXT, decode_error_text, encode_error_text};

/// One sound body of each kind, field by field.
fn sound() -> Vec<(Bodies, Vec<Vec<u8>>)> {
    let mut runner = TestRunner::deterministic();
    let mut one = |bodies: Bodies| {
        let values = bodies.values();
        let found = (0..1000)
            .map(|_| values.new_tree(&mut runner).expect("a value").current())
            .find(|values| bodies.again(&values.concat()).is_ok());
        (bodies, found.expect("a sound one"))
    };
    Bodies::all().into_iter().map(&mut one).collect()
}

/// The error for a body with one field replaced.
fn with_field(bodies: Bodies, values: &[Vec<u8>], at: usize, value: &[u8]) -> BodyError {
    let mut values = values.to_vec();
    values[at] = value.to_vec();
    let error = bodies.again(&values.concat()).expect_err("broken");
    assert_eq!(error.field, bodies.fields()[at].name, "{bodies:?}");
    error
}

#[test]
fn every_body_that_is_cut_short_is_refused() {
    for (bodies, values) in sound() {
        let body = values.concat();
        for len in 0..body.len() {
            let error = bodies.again(&body[..len]).expect_err("cut short");
            assert!(
                matches!(error.error, FieldError::Short { .. }),
                "{bodies:?} {error}"
            );
        }
    }
}

#[test]
fn every_body_with_more_behind_it_is_refused() {
    for (bodies, values) in sound() {
        let mut body = values.concat();
        let max = body.len();
        body.push(0);
        let error = bodies.again(&body).expect_err("too long");
        let len = max + 1;
        assert_eq!(
            (error.field, error.error),
            ("end", FieldError::TooLong { len, max })
        );
    }
}

#[test]
fn every_number_that_must_not_be_0_is_refused_as_0() {
    let mut found = 0;
    for (bodies, values) in sound() {
        for (at, field) in bodies.fields().iter().enumerate() {
            if field.wire.ends_with("at least 1") || field.wire == "handle" {
                with_field(bodies, &values, at, &vec![0; field.max_len]);
                found += 1;
            }
        }
    }
    assert!(found >= 5, "{found}");
}

#[test]
fn every_text_and_list_that_is_too_long_is_refused() {
    let mut found = 0;
    for (bodies, values) in sound() {
        for (at, field) in bodies.fields().iter().enumerate() {
            let max = match (field.list, field.wire) {
                (Some((max, _)), _) => max,
                (None, "text" | "bytes") => field.max_len - 2,
                _ => continue,
            };
            for len in [max + 1, usize::from(u16::MAX)] {
                let announced = u16::try_from(len).expect("16 bits").to_le_bytes();
                let error = with_field(bodies, &values, at, &announced).error;
                assert_eq!(error, FieldError::TooLong { len, max }, "{bodies:?}");
            }
            found += 1;
        }
    }
    assert!(found >= 9, "{found}");
}

#[test]
fn every_text_that_is_not_utf_8_is_refused_and_none_can_steer_a_terminal() {
    for (bodies, values) in sound() {
        for (at, field) in bodies.fields().iter().enumerate() {
            if field.wire != "text" {
                continue;
            }
            let error = with_field(bodies, &values, at, &[2, 0, 0xc3, 0x28]).error;
            assert_eq!(error, FieldError::NotText);
            let mut values = values.clone();
            values[at] = [&[4, 0][..], b"\x1b[2J"].concat();
            let shown = bodies.again(&values.concat()).expect("a sound body");
            values[at] = [&[4, 0][..], b" [2J"].concat();
            assert_eq!(shown, values.concat());
        }
    }
}

fn refused<T: Body + std::fmt::Debug>(body: &[u8], expected: &str) {
    let error = T::decode(body).expect_err(expected).to_string();
    assert_eq!(error, expected);
}

#[test]
fn the_rules_of_single_operations() {
    let hello = [&3u16.to_le_bytes()[..], &2u16.to_le_bytes(), &[0; 10]].concat();
    refused::<Hello>(&hello, "Hello: max_version is 2, below min_version");
    refused::<Hello>(&[], "Hello: min_version needs 2 bytes where 0 are left");
    let exchange = |up: u64, down: u64| [up.to_le_bytes(), down.to_le_bytes()].concat();
    refused::<Exchange>(
        &exchange(1 << 60, 0),
        "Exchange: up is 1152921504606846976, 2^60 and more have no room anywhere",
    );
    refused::<Exchange>(&exchange(7, 8), "Exchange: down is 8, more than come up");
    assert!(Exchange::decode(&exchange(0, 0)).is_ok());
    let fill = |element_bytes: u8| {
        let address_and_value = [0; 12];
        let count_and_stream = [&1u64.to_le_bytes()[..], &[0; 8]].concat();
        [&address_and_value[..], &[element_bytes], &count_and_stream].concat()
    };
    for element_bytes in [1, 2, 4] {
        assert!(FillRange::decode(&fill(element_bytes)).is_ok());
    }
    for element_bytes in [0, 3, 8, 255] {
        refused::<FillRange>(
            &fill(element_bytes),
            &format!("FillRange: element_bytes is {element_bytes}, 1, 2 or 4 needed"),
        );
    }
    let rows = |width: u64, height: u64| {
        let shape = [0, width, width, height, 0].map(u64::to_le_bytes);
        shape.as_flattened().to_vec()
    };
    assert!(CopyRowsToDevice::decode(&rows(1 << 30, (1 << 30) - 1)).is_ok());
    for (width, height) in [
        (1 << 30, 1 << 30),
        (1, u64::MAX),
        (u64::MAX, 2),
        (1 << 32, 1 << 32),
    ] {
        let rule = "2^60 bytes and more have no room anywhere";
        let body = rows(width, height);
        let text = |name: &str| format!("{name}: height is {height}, {rule}");
        refused::<CopyRowsToDevice>(&body, &text("CopyRowsToDevice"));
        refused::<CopyRowsFromDevice>(&body, &text("CopyRowsFromDevice"));
    }
    let module = Handle::new(HandleKind::Module, 3, 1)
        .expect("sound")
        .to_bits();
    let load = |bytes: u64| [module.to_le_bytes(), bytes.to_le_bytes()].concat();
    assert!(ModuleLoad::decode(&load(256 << 20)).is_ok());
    refused::<ModuleLoad>(
        &load((256 << 20) + 1),
        "ModuleLoad: bytes is 268435457, at most 256 MiB allowed",
    );
    refused::<MemoryPoolInfo>(
        &module.to_le_bytes(),
        "MemoryPoolInfo: pool names a Module, but a MemoryPool is needed",
    );
    let compile = |source: u64, headers: &[u32]| {
        let mut body = module.to_le_bytes().to_vec();
        body.extend(90u32.to_le_bytes());
        body.extend(source.to_le_bytes());
        body.extend([1, 0, b'k']);
        body.extend(u16::try_from(headers.len()).expect("few").to_le_bytes());
        for bytes in headers {
            body.extend([1, 0, b'h']);
            body.extend(bytes.to_le_bytes());
        }
        body.extend([0, 0]);
        body
    };
    assert!(ModuleCompile::decode(&compile(1 << 20, &[])).is_ok());
    assert!(ModuleCompile::decode(&compile((1 << 20) - 7, &[3, 4])).is_ok());
    let rule = "at most 1 MiB allowed, with the headers";
    for (source, headers, all) in [
        ((1 << 20) + 1, &[][..], (1 << 20) + 1),
        (1 << 20, &[1], (1 << 20) + 1),
        (1, &[u32::MAX; 64], 64 * u64::from(u32::MAX) + 1),
        (u64::MAX, &[1], u64::MAX),
    ] {
        let text = format!("ModuleCompile: source_bytes is {all}, {rule}");
        refused::<ModuleCompile>(&compile(source, headers), &text);
    }
    refused::<ModuleCompile>(
        &compile(1, &[0; 65]),
        "ModuleCompile: headers has a length of 65, at most 64 allowed",
    );
    let wait = |stream: u64| StreamSynchronize::decode(&stream.to_le_bytes());
    for stream in [0, 1, 2, 0x1_0100_0000] {
        assert!(wait(stream).is_ok(), "{stream:#x}");
    }
    for stream in [3, u64::MAX, module, 0x0100_0000] {
        assert!(wait(stream).is_err(), "{stream:#x}");
    }
    refused::<Ping>(
        &[1, 16],
        "Ping: payload has a length of 4097, at most 4096 allowed",
    );
    refused::<HelloReply>(&[0; 30], "HelloReply: version is 0, at least 1 needed");
}

#[test]
fn failures_that_a_fence_cannot_tell() {
    let fence = |op: u16, status: i32| {
        let mut body = vec![0; 4];
        body.extend(1u16.to_le_bytes());
        body.extend(9u32.to_le_bytes());
        body.extend(op.to_le_bytes());
        body.extend(status.to_le_bytes());
        body
    };
    assert!(FenceReply::decode(&fence(Op::Ping.code(), -10)).is_ok());
    refused::<FenceReply>(
        &fence(99, -10),
        "FenceReply: failures is 99, not an operation of this version",
    );
    refused::<FenceReply>(
        &fence(Op::Ping.code(), 0),
        "FenceReply: failures is 0, a failure needs an error code",
    );
}

#[test]
fn the_data_of_a_request_never_overflows_its_count() {
    // Every body that decodes has a number of bytes that fits.
    let most = ((1u64 << 60) - 1).to_le_bytes();
    let most = Exchange::decode(&[most, most].concat()).expect("sound");
    let request = vgpu_protocol::op::Request::from(most);
    assert_eq!(request.data(), ((1 << 60) - 1, (1 << 60) - 1));
}

#[test]
fn error_texts_are_cut_and_cleaned() {
    assert_eq!(
        decode_error_text(b"out of\x1b[2J\nluck\xff"),
        "out of [2J luck\u{fffd}"
    );
    assert_eq!(decode_error_text(&[b'a'; 5000]).len(), MAX_ERROR_TEXT);
    // A character of two bytes across the limit is left out as a whole.
    let long = "é".repeat(600) + "x";
    let cut = encode_error_text(&long);
    assert_eq!(cut.len(), MAX_ERROR_TEXT);
    let odd = format!("x{}", "é".repeat(600));
    assert_eq!(encode_error_text(&odd).len(), MAX_ERROR_TEXT - 1);
}

#[test]
fn texts_are_cut_to_what_fits() {
    let info = InfoReply {
        total_memory: 1,
        executor: "é".repeat(1000).as_str().into(),
        device: "".into(),
        driver: "".into(),
        reason: "".into(),
        mediator: "".into(),
    };
    assert_eq!(info.executor.as_str().len(), 512);
    assert_eq!(InfoReply::decode(&info.encode()), Ok(info));
}

#[test]
fn the_longest_body_is_that_of_a_launch_or_of_what_is_told_of_its_parameters() {
    // A frame other than data is received whole before it is used: this is the largest that a guest
    // can send.
    let request = Op::Launch.max_body(false);
    assert_eq!(
        request,
        8 + 4 + 12 + 12 + 4 + 8 + 4 + (2 + 32_764) + (2 + 8 * 68)
    );
    for op in Op::REQUESTS {
        assert!(op.max_body(false) <= request, "{op}");
    }
    let told = Op::ModuleFunction.max_body(true);
    assert_eq!(told, 4 + 4 + (2 + 32 * 4) + (2 + 4096 * 8));
    assert_eq!(MAX_CONTROL_BODY, request.max(told));
    for bodies in Bodies::all() {
        assert!(bodies.max_len() <= MAX_CONTROL_BODY, "{bodies:?}");
    }
}
