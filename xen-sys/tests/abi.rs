//! The Rust view of the kernel's interfaces against the C compiler's view of the same headers.
//!
//! bindgen already asserts the layouts that libclang saw; this asks the machine's own compiler,
//! and covers the ioctl numbers, which are macros.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_sys::generated::uapi::*;

/// One fact: the C expression and the Rust value.
type Fact = (String, u64);

fn wide(value: usize) -> u64 {
    u64::try_from(value).expect("usize is at most 64 bits")
}

/// Facts about constants of the same name in C and Rust.
macro_rules! constants {
    ($($name:ident)*) => {
        vec![$((stringify!($name).to_owned(), u64::from($name))),*]
    };
}

/// Facts about a struct: its size, its alignment, and each field's offset. A field that is a
/// keyword in Rust is given as `rust_name = "c_name"`.
macro_rules! layouts {
    ($($name:ident { $($field:ident $(= $c_name:literal)?),* })*) => {
        vec![$(
            (format!("sizeof(struct {})", stringify!($name)), wide(size_of::<$name>())),
            (format!("_Alignof(struct {})", stringify!($name)), wide(align_of::<$name>())),
            $((
                format!(
                    "offsetof(struct {}, {})",
                    stringify!($name),
                    [$($c_name,)? stringify!($field)][0]
                ),
                wide(offset_of!($name, $field)),
            )),*
        ),*]
    };
}

fn facts() -> Vec<Fact> {
    let mut facts = constants! {
        IOCTL_GNTALLOC_ALLOC_GREF IOCTL_GNTALLOC_DEALLOC_GREF IOCTL_GNTALLOC_SET_UNMAP_NOTIFY
        IOCTL_GNTDEV_MAP_GRANT_REF IOCTL_GNTDEV_UNMAP_GRANT_REF IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR
        IOCTL_GNTDEV_SET_MAX_GRANTS IOCTL_GNTDEV_SET_UNMAP_NOTIFY IOCTL_GNTDEV_GRANT_COPY
        IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED
        IOCTL_GNTDEV_DMABUF_IMP_TO_REFS IOCTL_GNTDEV_DMABUF_IMP_RELEASE
        IOCTL_EVTCHN_BIND_VIRQ IOCTL_EVTCHN_BIND_INTERDOMAIN IOCTL_EVTCHN_BIND_UNBOUND_PORT
        IOCTL_EVTCHN_UNBIND IOCTL_EVTCHN_NOTIFY IOCTL_EVTCHN_RESET IOCTL_EVTCHN_RESTRICT_DOMID
        GNTALLOC_FLAG_WRITABLE UNMAP_NOTIFY_CLEAR_BYTE UNMAP_NOTIFY_SEND_EVENT
        VCHAN_NOTIFY_WRITE VCHAN_NOTIFY_READ
        XENSTORE_PAYLOAD_MAX XENSTORE_ABS_PATH_MAX XENSTORE_REL_PATH_MAX
    };
    facts.extend(layouts! {
        ioctl_gntalloc_alloc_gref { domid, flags, count, index, gref_ids }
        ioctl_gntalloc_dealloc_gref { index, count }
        ioctl_gntalloc_unmap_notify { index, action, event_channel_port }
        ioctl_gntdev_grant_ref { domid, ref_ = "ref" }
        ioctl_gntdev_map_grant_ref { count, pad, index, refs }
        ioctl_gntdev_unmap_grant_ref { index, count, pad }
        ioctl_gntdev_get_offset_for_vaddr { vaddr, offset, count, pad }
        ioctl_gntdev_set_max_grants { count }
        ioctl_gntdev_unmap_notify { index, action, event_channel_port }
        gntdev_grant_copy_segment { source, dest, len, flags, status }
        ioctl_gntdev_grant_copy { count, segments }
        ioctl_gntdev_dmabuf_exp_from_refs { flags, count, fd, domid, refs }
        ioctl_gntdev_dmabuf_exp_wait_released { fd, wait_to_ms }
        ioctl_gntdev_dmabuf_imp_to_refs { fd, count, domid, reserved, refs }
        ioctl_gntdev_dmabuf_imp_release { fd, reserved }
        ioctl_evtchn_bind_virq { virq }
        ioctl_evtchn_bind_interdomain { remote_domain, remote_port }
        ioctl_evtchn_bind_unbound_port { remote_domain }
        ioctl_evtchn_unbind { port }
        ioctl_evtchn_notify { port }
        ioctl_evtchn_restrict_domid { domid }
        ring_shared { cons, prod }
        vchan_interface {
            left, right, left_order, right_order, cli_live, srv_live, cli_notify, srv_notify,
            grants
        }
        xsd_sockmsg { type_ = "type", req_id, tx_id, len }
    });
    facts
}

/// Compiles and runs a C program that prints each expression's value.
fn ask_the_compiler(expressions: &[Fact]) -> BTreeMap<String, u64> {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("abi.c"), folder.join("abi"));
    let mut text = String::from("#include <stddef.h>\n#include <stdio.h>\n#include \"uapi.h\"\n");
    text.push_str("int main(void) {\n");
    for (expression, _) in expressions {
        writeln!(
            text,
            "    printf(\"%llu %s\\n\", (unsigned long long)({expression}), \"{expression}\");"
        )
        .expect("writing to a string");
    }
    text.push_str("    return 0;\n}\n");
    fs::write(&source, text).expect("cannot write the C program");
    let status = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-I"])
        .arg(&include)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .expect("cannot run cc");
    assert!(status.success(), "cc failed: {status}");
    let output = Command::new(&program)
        .output()
        .expect("cannot run the C program");
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .expect("the program prints ASCII")
        .lines()
        .map(|line| {
            let (value, expression) = line.split_once(' ').expect("value and expression");
            (expression.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn numbers_sizes_and_offsets_are_those_of_the_headers() {
    let facts = facts();
    let c = ask_the_compiler(&facts);
    assert_eq!(c.len(), facts.len(), "every expression has one answer");
    for (expression, rust) in facts {
        assert_eq!(c.get(&expression), Some(&rust), "{expression}");
    }
}

/// A struct or ioctl that is added to the bindings must be added to the facts too.
#[test]
fn the_facts_are_complete() {
    let bindings = include_str!("../src/generated/uapi.rs");
    let facts: BTreeMap<_, _> = facts().into_iter().collect();
    let mut seen = 0;
    for line in bindings.lines() {
        let fact = if let Some(rest) = line.strip_prefix("pub const IOCTL_") {
            format!("IOCTL_{}", rest.split(':').next().unwrap_or_default())
        } else if let Some(name) = line.strip_prefix("pub struct ioctl_") {
            format!("sizeof(struct ioctl_{})", name.trim_end_matches(" {"))
        } else {
            continue;
        };
        assert!(
            facts.contains_key(&fact),
            "{fact} is bound but not compared with C"
        );
        seen += 1;
    }
    assert!(seen > 30, "only {seen} bindings found");
}

/// The numbers that other implementations got wrong, derived again from the headers:
/// `_IOC(_IOC_NONE, type, number, size)` is `size << 16 | type << 8 | number` on x86 and arm.
#[test]
fn known_pitfalls() {
    assert_eq!(
        IOCTL_GNTALLOC_ALLOC_GREF, 0x0018_4705,
        "24 bytes with padding, not 20"
    );
    assert_eq!(IOCTL_EVTCHN_BIND_UNBOUND_PORT, 0x0004_4502);
    assert_eq!(IOCTL_EVTCHN_UNBIND, 0x0004_4503);
    assert_eq!(
        xsd_sockmsg_type_XS_RESET_WATCHES, 21,
        "number 20 is not used"
    );
}
