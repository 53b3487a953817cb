//! Names in the guest's own node. The guest writes them, so they are checked before use.

/// Whether a child of `data/vgpu` is a channel: 16 hexadecimal digits, lower case.
pub(crate) fn is_channel(name: &str) -> bool {
    name.len() == 16
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The uuid in the value of a domain's node `vm`, which dom0 writes: `/vm/UUID` and perhaps more.
pub(crate) fn uuid(vm: &str) -> Option<String> {
    let rest = vm.strip_prefix("/vm/")?;
    let uuid = rest.get(..36)?;
    let sound = uuid.bytes().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    // XAPI appends `-N` to the uuid of a VM that is migrated within its host.
    let ends = rest[36..].is_empty() || rest[36..].starts_with(['/', '-']);
    (sound && ends).then(|| uuid.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sixteen_hex_digits_are_channels() {
        assert!(is_channel("0123456789abcdef"));
        for name in [
            "",
            "mediator",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789ABCDEF",
            "0123456789abcde/",
            "../../0123456789",
            "0123456789abcdé",
        ] {
            assert!(!is_channel(name), "{name}");
        }
    }

    #[test]
    fn uuids_come_from_the_vm_path() {
        let wanted = Some("0a1b2c3d-0000-4000-8000-00000000beef".to_owned());
        assert_eq!(uuid("/vm/0a1b2c3d-0000-4000-8000-00000000beef"), wanted);
        assert_eq!(uuid("/vm/0A1B2C3D-0000-4000-8000-00000000BEEF"), wanted);
        assert_eq!(uuid("/vm/0a1b2c3d-0000-4000-8000-00000000beef-1"), wanted);
        for vm in [
            "",
            "/vm/",
            "/vm/x",
            "0a1b2c3d-0000-4000-8000-00000000beef",
            "/vm/0a1b2c3d-0000-4000-8000-00000000beefx",
            "/vm/0a1b2c3d+0000-4000-8000-00000000beef",
            "/vm/0a1b2c3d-0000-4000-8000-0000000é",
        ] {
            assert_eq!(uuid(vm), None, "{vm}");
        }
    }
}
