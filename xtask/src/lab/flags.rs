//! Command line of `cargo xtask lab`.

#![allow(unreachable_pub, reason = "written by the xflags macro")]

use std::path::PathBuf;

xflags::xflags! {
    /// A real Xen in QEMU (or a Xen host over ssh) for people and tests.
    cmd lab {
        /// Use this Xen host over ssh (`root@HOST`) in place of QEMU.
        optional --host HOST: String
        /// A guest of that host, reached over ssh (`root@IP`); give two for the tests of two guests.
        repeated --guest GUEST: String
        /// Which xenstored dom0 runs: `c`, `oxen` (XCP-ng's), or for `test` also `both`.
        optional --xenstored KIND: String
        /// The hypervisor's security module: `silo`, XCP-ng's default, for which Xen is built from Debian's
        /// source once; `none` is Debian's own build.
        optional --xsm MODULE: String
        /// Take the programs out of the debs in this folder, which `cargo xtask dist` makes, in place of the
        /// tests' own builds.
        optional --packages DIR: PathBuf
        /// Memory of the whole emulated machine, MiB.
        optional --memory MIB: u32

        /// Download the packages and build the images, nothing else.
        cmd build {}
        /// Boot with this terminal as dom0's console.
        cmd shell {
            /// A file or folder to put beside the project's binaries (dom0 and guests: /opt/vgpu/bin).
            repeated --add PATH: PathBuf
            /// Leave the project's own binaries out (no cargo build).
            optional --bare
        }
        /// A PV and a PVH guest add vectors at once through dom0; Xen's own view of it.
        cmd demo {}
        /// The integration tests that need Xen.
        cmd test {
            /// Only tests whose name contains this; several texts are separated by commas.
            optional --filter TEXT: String
            /// One JSON object a line.
            optional --json
            /// Print the names of the tests, run nothing.
            optional --list
            /// A file or folder to put beside the project's binaries.
            repeated --add PATH: PathBuf
            /// Leave the project's own binaries out (no cargo build).
            optional --bare
        }
        /// Boot, run a shell script in dom0 with the lab's functions, print its output, end with its status.
        cmd run {
            /// The script; `-` reads standard input.
            required --script FILE: PathBuf
            /// A file or folder to put beside the project's binaries (dom0 and guests: /opt/vgpu/bin).
            repeated --add PATH: PathBuf
            /// Seconds the script may take.
            optional --timeout SECONDS: u64
            /// Leave the project's own binaries out (no cargo build).
            optional --bare
        }
    }
}
