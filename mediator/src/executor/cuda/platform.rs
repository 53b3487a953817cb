//! Which kind of machine this is, as far as it decides whether CUDA can work.
//!
//! NVIDIA's driver needs the page attribute table (PAT), which Xen does not give to a paravirtual
//! (PV) domain: in a PV dom0 it may load and list the GPU, but every allocation fails. A dom0 that
//! Xen started as PVH, with the IOMMU on, has no such limit.

use std::fs;
use std::path::Path;

/// The role of this machine under Xen, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Platform {
    /// No Xen below this kernel, none that shows itself at least.
    NotXen,
    /// A domain of Xen.
    Xen {
        /// Paravirtual, so without PAT.
        paravirtual: bool,
        /// The control domain.
        dom0: bool,
    },
}

impl Platform {
    /// Looks at this machine.
    pub(super) fn detect() -> Platform {
        Platform::detect_below(Path::new("/"))
    }

    /// Looks at the files below `root`, laid out as in `/`.
    fn detect_below(root: &Path) -> Platform {
        let read = |path: &str| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(text.trim().to_owned())
        };
        if read("sys/hypervisor/type").as_deref() != Some("xen") {
            return Platform::NotXen;
        }
        // Shown since Linux 4.13; a kernel that has no such file is taken as not paravirtual, for
        // want of a proof.
        let paravirtual = read("sys/hypervisor/guest_type").as_deref() == Some("PV");
        // xenfs may be unmounted; then the all-zero UUID, which only dom0 has, tells.
        let dom0 = read("proc/xen/capabilities").is_some_and(|text| text.contains("control_d"))
            || read("sys/hypervisor/uuid")
                .is_some_and(|uuid| uuid.chars().all(|c| c == '0' || c == '-'));
        Platform::Xen { paravirtual, dom0 }
    }

    /// An explanation where CUDA failed here: `(cause, advice)`.
    pub(super) fn hint(self) -> Option<(&'static str, &'static str)> {
        match self {
            Platform::Xen {
                paravirtual: true,
                dom0: true,
            } => Some((
                "this is a PV dom0, where NVIDIA's driver cannot allocate memory (no PAT)",
                "boot Xen with `dom0=pvh iommu=pt`, or give the GPU to a PVH or HVM domain and \
                 relay to a mediator there",
            )),
            Platform::Xen {
                paravirtual: true,
                dom0: false,
            } => Some((
                "this is a PV domain, where NVIDIA's driver cannot allocate memory (no PAT)",
                "make the domain PVH or HVM, with the GPU passed through",
            )),
            Platform::Xen {
                paravirtual: false, ..
            }
            | Platform::NotXen => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files in it.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const DOM0_UUID: (&str, &str) = (
        "sys/hypervisor/uuid",
        "00000000-0000-0000-0000-000000000000\n",
    );

    #[test]
    fn a_machine_without_xen_has_no_hint() {
        let root = machine(&[]);
        let platform = Platform::detect_below(root.path());
        assert_eq!(platform, Platform::NotXen);
        assert_eq!(platform.hint(), None);
    }

    #[test]
    fn a_pv_dom0_is_told_by_its_uuid_or_by_xenfs() {
        let pv = [
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/guest_type", "PV\n"),
        ];
        for sign in [DOM0_UUID, ("proc/xen/capabilities", "control_d\n")] {
            let root = machine(&[&pv[..], &[sign]].concat());
            let platform = Platform::detect_below(root.path());
            assert_eq!(
                platform,
                Platform::Xen {
                    paravirtual: true,
                    dom0: true
                }
            );
            let (cause, advice) = platform.hint().unwrap();
            assert!(cause.contains("PV dom0"), "{cause}");
            assert!(
                advice.contains("dom0=pvh iommu=pt") && advice.contains("relay"),
                "{advice}"
            );
        }
    }

    #[test]
    fn a_pvh_dom0_may_have_cuda() {
        let root = machine(&[
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/guest_type", "PVH\n"),
            DOM0_UUID,
        ]);
        let platform = Platform::detect_below(root.path());
        assert_eq!(
            platform,
            Platform::Xen {
                paravirtual: false,
                dom0: true
            }
        );
        assert_eq!(platform.hint(), None);
    }

    #[test]
    fn a_pv_guest_is_advised_differently() {
        let root = machine(&[
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/guest_type", "PV\n"),
            (
                "sys/hypervisor/uuid",
                "5a3c22a4-10d7-4f5c-8a86-5ff6cf6c4ba7\n",
            ),
            ("proc/xen/capabilities", ""),
        ]);
        let platform = Platform::detect_below(root.path());
        assert_eq!(
            platform,
            Platform::Xen {
                paravirtual: true,
                dom0: false
            }
        );
        assert!(platform.hint().unwrap().1.contains("PVH or HVM"));
    }
}
