//! Launches, modules and sources that have to be refused.

use vgpu_protocol::handle::HandleKind;
use vgpu_protocol::op::field::List;
use vgpu_protocol::op::{
    Body, FunctionOccupancy, Launch, LaunchAttribute, ModuleCompile, ModuleCompileReply,
    ModuleFunction, ModuleLoad, Op, Request, Synchronize,
};
use vgpu_protocol::status::ErrorCode;

use super::{HANDLE, INVALID_VALUE, UNSUPPORTED, bytes, handle, kernel, launch, load};
use crate::{KERNELS, Place};

pub(super) fn launches(place: &Place<'_>) {
    let mut guest = place.open();
    let (module, poke) = kernel(&mut guest, "poke");
    let word = guest.allocate(8).to_le_bytes();
    let sound = launch(module, poke, &word);
    let mut wrong = vec![
        launch(module, poke, &[]),
        launch(module, poke, &word[..7]),
        launch(module, poke, &[word, word].concat()),
        launch(module, poke, &[7; 32_764]),
        launch(module, poke + 1000, &word),
        launch(module, u32::MAX, &word),
        Launch {
            shared_bytes: u32::MAX,
            ..sound.clone()
        },
        Launch {
            shared_bytes: 1 << 20,
            ..sound.clone()
        },
    ];
    for at in 0..3 {
        for value in [0, 1 << 31, u32::MAX] {
            let (mut grid, mut block) = ([1; 3], [1; 3]);
            grid[at] = value;
            block[at] = value;
            wrong.push(Launch {
                grid,
                ..sound.clone()
            });
            wrong.push(Launch {
                block,
                ..sound.clone()
            });
        }
    }
    wrong.push(Launch {
        block: [1024, 1024, 64],
        ..sound.clone()
    });
    wrong.push(Launch {
        block: [1025, 1, 1],
        ..sound.clone()
    });
    let attribute = |id, value: &[u8]| {
        let mut attributes = List::default();
        let attribute = LaunchAttribute::new(id, value).expect("64 bytes at most");
        attributes.push(attribute).expect("one");
        let sound = sound.clone();
        Launch {
            attributes,
            ..sound
        }
    };
    // The name of an object would be an address in the worker; an unknown attribute might have one.
    for id in [7, 12, 13, 15, 17, 64, 1 << 31, u32::MAX] {
        wrong.push(attribute(id, &[0x41; 64]));
        wrong.push(attribute(id, &[]));
    }
    // Windows of memory that is not the guest's.
    for (base, bytes) in [(8, 8), (u64::MAX, 1), (u64::MAX, 2)] {
        wrong.push(attribute(
            1,
            [base, bytes].map(u64::to_le_bytes).as_flattened(),
        ));
    }
    let own = u64::from_le_bytes(word);
    for (base, bytes) in [
        (own, 9),
        (own - 1, 8),
        (own, u64::MAX),
        (own + 8, u64::MAX - 7),
    ] {
        wrong.push(attribute(
            1,
            [base, bytes].map(u64::to_le_bytes).as_flattened(),
        ));
    }
    // More blocks at once than any device has, and clusters that no grid has.
    let mut all_at_once = attribute(2, &[1]);
    all_at_once.grid = [i32::MAX.cast_unsigned(), 65_535, 65_535];
    wrong.push(all_at_once);
    for cluster in [[0, 0, 0], [u32::MAX; 3], [1 << 16, 1 << 16, 1], [2, 1, 1]] {
        wrong.push(attribute(4, cluster.map(u32::to_le_bytes).as_flattened()));
    }
    for launch in wrong {
        let text = format!(
            "{:?} of {:?}, {:?}",
            launch.grid, launch.block, launch.attributes
        );
        let (status, _) = guest.ask(launch);
        assert!(!status.is_ok(), "{text}");
    }
    guest.done(sound);
    guest.done(Synchronize {});
    guest.serves();
}

pub(super) fn occupancies(place: &Place<'_>) {
    let mut guest = place.open();
    let (module, function) = kernel(&mut guest, "poke");
    let sound = FunctionOccupancy {
        module,
        function,
        block_threads: 32,
        shared_bytes: 0,
        flags: 0,
    };
    for number in [function + 1000, u32::MAX] {
        let function = number;
        guest.refused(
            FunctionOccupancy {
                function,
                ..sound.clone()
            },
            &[HANDLE],
        );
    }
    let wrong = FunctionOccupancy {
        block_threads: 0,
        ..sound.clone()
    };
    guest.refused(wrong, &[INVALID_VALUE]);
    for flags in [2, u32::MAX] {
        let sound = sound.clone();
        guest.refused(FunctionOccupancy { flags, ..sound }, &[INVALID_VALUE]);
    }
    // None fits, and nothing is the matter.
    for (block_threads, shared_bytes) in [(u32::MAX, 0), (1 << 31, u64::MAX), (32, 1 << 32)] {
        guest.done(FunctionOccupancy {
            block_threads,
            shared_bytes,
            ..sound.clone()
        });
    }
    guest.serves();
}

pub(super) fn modules(place: &Place<'_>) {
    let nested = |open: &str, close: &str| {
        let body = format!(
            "{}mov.u32 %r, 1;{}",
            open.repeat(50_000),
            close.repeat(50_000)
        );
        format!(
            ".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 %r;\n{body}ret;\n}}\n"
        )
    };
    let expression = format!(
        ".version 6.0\n.target sm_50\n.address_size 64\n.global .u32 x = {}1{};\n",
        "(".repeat(50_000),
        ")".repeat(50_000)
    );
    let large = format!(
        ".version 6.0\n.target sm_50\n.address_size 64\n.global .b8 x[{}];\n",
        1u64 << 40
    );
    let elf = [&b"\x7fELF\x02\x01\x01\x33"[..], &[0xff; 500]].concat();
    // A fatbin whose sizes are as large as can be.
    let fatbin = [
        &0xba55_ed50u32.to_le_bytes()[..],
        &[1, 0, 16, 0],
        &[0xff; 200],
    ]
    .concat();
    let half = &KERNELS.as_bytes()[..KERNELS.len() / 2];
    let images: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0xff; 4096],
        b"\x7fELF".to_vec(),
        elf,
        fatbin[..8].to_vec(),
        fatbin,
        half.to_vec(),
        [half, b"\0", half].concat(),
        nested("{", "}").into_bytes(),
        expression.into_bytes(),
        large.into_bytes(),
        b".version 99.9\n.target sm_999\n".to_vec(),
    ];
    let mut guest = place.open();
    for (slot, image) in (0..).zip(images) {
        let module = handle(HandleKind::Module, slot, 1);
        // A compiler may take some of them, and nothing of these can be run.
        let (status, _) = load(&mut guest, module, &image);
        let nested = image.len() > 90_000;
        assert!(!status.is_ok() || nested, "image {slot}");
        if !status.is_ok() {
            let named = ModuleFunction {
                module,
                name: "k".into(),
            };
            assert!(!guest.ask(named).0.is_ok(), "image {slot}");
        }
    }
    guest.serves();
}

/// As much as there may be is announced, and next to nothing comes.
pub(super) fn half_modules(place: &Place<'_>) {
    let mut guest = place.open();
    let module = handle(HandleKind::Module, 0, 1);
    let load = ModuleLoad {
        module,
        bytes: bytes(256 << 20),
    };
    guest.refused(
        load,
        &[ErrorCode::Cancelled.into(), ErrorCode::QuotaMemory.into()],
    );
    guest.serves();
    let header = guest.header(Op::ModuleLoad);
    let mut body = Vec::new();
    Request::from(ModuleLoad {
        module,
        bytes: bytes((256 << 20) + 1),
    })
    .encode_to(&mut body);
    guest.frame(header, &body);
    guest.ended(ErrorCode::Protocol);
}

pub(super) fn sources(place: &Place<'_>) {
    let mut guest = place.open();
    let files = [
        "/etc/passwd",
        "/proc/self/environ",
        "../../../../etc/passwd",
        "/dev/zero",
    ];
    for (slot, file) in (0..).zip(files) {
        let source = format!("#include \"{file}\"\nextern \"C\" __global__ void k() {{}}\n");
        let request = ModuleCompile {
            module: handle(HandleKind::Module, slot, 1),
            capability: 0,
            source_bytes: bytes(source.len() as u64),
            name: file.into(),
            headers: Default::default(),
            options: Default::default(),
        };
        let header = guest.header(Op::ModuleCompile);
        let id = guest.send_as(header, &request.into(), source.as_bytes());
        let (status, body) = guest.answer(id);
        if status.is_ok() {
            let reply = ModuleCompileReply::decode(&body).expect("a reply");
            let log = String::from_utf8_lossy(reply.log.as_slice()).into_owned();
            assert!(reply.result != 0 && !log.contains("root:"), "{log}");
        } else {
            assert_eq!(status, UNSUPPORTED);
        }
    }
    guest.serves();
}
