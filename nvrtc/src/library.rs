//! libnvrtc: where it is, and its functions.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

/// Names to the dynamic linker, the newest first. CUDA 11 has one name from 11.2 on.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"];

/// Directories of the CUDA toolkit that the dynamic linker may not know.
const FOLDERS: [&str; 4] = [
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/local/cuda/targets/sbsa-linux/lib",
    "/opt/cuda/lib64",
];

/// Names the library, or its directory.
const VARIABLE: &str = "VGPU_NVRTC";

/// `NVRTC_ERROR_INVALID_INPUT`.
const INVALID_INPUT: c_int = 3;

type Program = *mut std::ffi::c_void;
type Strings = *const *const c_char;

/// The functions, with the signatures of `nvrtc.h`.
#[derive(Clone, Copy)]
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    architectures: unsafe extern "C" fn(*mut c_int) -> c_int,
    architecture_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        Strings,
        Strings,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

impl Functions {
    fn find(library: &Library) -> Result<Self, libloading::Error> {
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: a library with this name is NVIDIA's, whose functions have had these signatures since CUDA
                // 11.2; the pointer is used only while `Nvrtc` holds the library.
                *unsafe { library.get($name) }?
            };
        }
        Ok(Self {
            version: function!(b"nvrtcVersion"),
            architectures: function!(b"nvrtcGetSupportedArchs"),
            architecture_count: function!(b"nvrtcGetNumSupportedArchs"),
            error_string: function!(b"nvrtcGetErrorString"),
            create: function!(b"nvrtcCreateProgram"),
            destroy: function!(b"nvrtcDestroyProgram"),
            compile: function!(b"nvrtcCompileProgram"),
            log_size: function!(b"nvrtcGetProgramLogSize"),
            log: function!(b"nvrtcGetProgramLog"),
            ptx_size: function!(b"nvrtcGetPTXSize"),
            ptx: function!(b"nvrtcGetPTX"),
        })
    }
}

/// A version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As 12 of 12.8.
    pub major: u32,
    /// As 8 of 12.8.
    pub minor: u32,
}

impl Version {
    /// The version that a driver reports as 1000 × major + 10 × minor (`cuDriverGetVersion`).
    pub fn of_driver(number: u32) -> Self {
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// There is no NVRTC that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no NVRTC: {0}")]
pub struct NvrtcNotFound(String);

impl NvrtcNotFound {
    /// One line on what a person can do about it.
    pub fn advice(&self) -> &'static str {
        "install NVIDIA's run-time compiler (cuda-nvrtc-12-x of the CUDA toolkit, or the Python package \
         nvidia-cuda-nvrtc), or name its library in VGPU_NVRTC"
    }
}

/// NVRTC has no architecture that a device runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "NVRTC {version} compiles for compute_{oldest} and newer; this device is of compute_{wanted}"
)]
pub struct NoArchitecture {
    version: Version,
    oldest: u32,
    wanted: u32,
}

/// A loaded libnvrtc. Clones are the same; it stays loaded while one of them is there. All of it may be used from any
/// thread.
#[derive(Clone)]
pub struct Nvrtc {
    functions: Functions,
    version: Version,
    path: PathBuf,
    /// Keeps the functions' code loaded.
    _library: Arc<Library>,
    /// libnvrtc-builtins, where it is found beside the library. Some versions load it for each compilation, which a
    /// process that may open no file by then could not.
    _builtins: Option<Arc<Library>>,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvrtc")
            .field("version", &self.version)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Nvrtc {
    /// Loads the library: the one that `VGPU_NVRTC` names; otherwise the newest that is no newer than `driver`, whose
    /// driver would not take its PTX, and if all are newer, any.
    ///
    /// # Errors
    /// It is not installed, or cannot be loaded.
    pub fn open(driver: Option<Version>) -> Result<Self, NvrtcNotFound> {
        if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            let named = PathBuf::from(named);
            let path = match named.is_dir() {
                true => in_folder(&named).into_iter().next().ok_or_else(|| {
                    let text = format!(
                        "{VARIABLE} is {}, which has no libnvrtc.so",
                        named.display()
                    );
                    NvrtcNotFound(text)
                })?,
                false => named,
            };
            return Self::load(&path).map_err(|error| {
                NvrtcNotFound(format!("{VARIABLE} is {}: {error}", path.display()))
            });
        }
        let mut newer = None;
        let folders = FOLDERS
            .iter()
            .flat_map(|folder| in_folder(Path::new(folder)));
        for path in NAMES.iter().map(PathBuf::from).chain(folders) {
            let Ok(found) = Self::load(&path) else {
                continue;
            };
            if driver.is_none_or(|driver| found.version <= driver) {
                return Ok(found);
            }
            newer.get_or_insert(found);
        }
        newer.ok_or_else(|| {
            let names = NAMES.join(", ");
            NvrtcNotFound(format!(
                "none of {names} can be loaded, and the CUDA toolkit is not there"
            ))
        })
    }

    fn load(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: NVRTC's constructors do nothing but set up the library itself.
        let library = unsafe { Library::new(path) }?;
        let functions = Functions::find(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes to the two, which are there.
        unsafe { (functions.version)(&raw mut major, &raw mut minor) };
        let builtins = path.with_file_name(format!("libnvrtc-builtins.so.{major}.{minor}"));
        // SAFETY: it holds data and nothing that runs.
        let builtins = unsafe { Library::new(&builtins) };
        Ok(Self {
            functions,
            version: Version {
                major: major.try_into().unwrap_or(0),
                minor: minor.try_into().unwrap_or(0),
            },
            path: path.to_owned(),
            _library: Arc::new(library),
            _builtins: builtins.ok().map(Arc::new),
        })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its file, or its name to the dynamic linker.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Virtual architectures that it compiles for, as 90 for `compute_90`, in ascending order.
    pub fn architectures(&self) -> Vec<u32> {
        let mut count = 0;
        // SAFETY: it writes one number.
        let result = unsafe { (self.functions.architecture_count)(&raw mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        if result != 0 || count == 0 || count > 1000 {
            return Vec::new();
        }
        let mut all: Vec<c_int> = vec![0; count];
        // SAFETY: it writes as many numbers as it has said.
        let result = unsafe { (self.functions.architectures)(all.as_mut_ptr()) };
        let all = all.into_iter().filter(|_| result == 0);
        let mut all: Vec<u32> = all.filter_map(|one| u32::try_from(one).ok()).collect();
        all.sort_unstable();
        all
    }

    /// The newest architecture that it knows and that a device with this compute capability, as 90 for 9.0, runs.
    ///
    /// # Errors
    /// The device is older than all of them.
    pub fn architecture(&self, capability: u32) -> Result<u32, NoArchitecture> {
        let all = self.architectures();
        let newest = all.iter().rev().find(|one| **one <= capability);
        newest.copied().ok_or_else(|| NoArchitecture {
            version: self.version,
            oldest: all.first().copied().unwrap_or(0),
            wanted: capability,
        })
    }

    /// NVRTC's name of a result.
    pub fn result_name(&self, result: i32) -> String {
        // SAFETY: it returns a constant string for any number.
        let name = unsafe { (self.functions.error_string)(result) };
        if name.is_null() {
            return "an unknown error of NVRTC".to_owned();
        }
        // SAFETY: a constant of the library, which is there while this is.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    }

    /// Makes a program; `names` and `texts` are of its headers.
    pub(crate) fn program(
        &self,
        source: &CStr,
        name: &CStr,
        names: &[CString],
        texts: &[CString],
    ) -> Result<OpenProgram<'_>, c_int> {
        let count = c_int::try_from(names.len().min(texts.len())).map_err(|_| INVALID_INPUT)?;
        let (names, texts) = (pointers(names), pointers(texts));
        let mut program = ptr::null_mut();
        // SAFETY: strings and lists are there during the call, which copies them; both lists have `count` of them.
        let result = unsafe {
            (self.functions.create)(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        match result {
            0 => Ok(OpenProgram {
                nvrtc: self,
                program,
            }),
            result => Err(result),
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

/// The libraries in a directory, by name.
fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_nvrtc(path))
        .collect();
    // The newest first, and one that stands for the newest before all.
    found.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
    found
}

fn is_nvrtc(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let rest = name.strip_prefix("libnvrtc.so");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn numbers(path: &Path) -> Vec<u32> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let numbers = name
        .split('.')
        .skip(2)
        .map(|part| part.parse().unwrap_or(0));
    numbers.collect()
}

/// A program, destroyed when dropped.
pub(crate) struct OpenProgram<'n> {
    nvrtc: &'n Nvrtc,
    program: Program,
}

impl OpenProgram<'_> {
    /// Compiles it, once.
    pub(crate) fn compile(&self, options: &[CString]) -> Result<(), c_int> {
        let count = c_int::try_from(options.len()).map_err(|_| INVALID_INPUT)?;
        let options = pointers(options);
        // SAFETY: the program is one of this library, and the list has `count` strings, all of which are there.
        match unsafe { (self.nvrtc.functions.compile)(self.program, count, options.as_ptr()) } {
            0 => Ok(()),
            result => Err(result),
        }
    }

    /// The first `most` bytes of the log, which ends with a NUL.
    pub(crate) fn log(&self, most: usize) -> Result<Vec<u8>, c_int> {
        let functions = &self.nvrtc.functions;
        let mut log = self.text(functions.log_size, functions.log)?;
        log.truncate(most);
        Ok(log)
    }

    /// Bytes of the PTX with its NUL.
    pub(crate) fn ptx_bytes(&self) -> Result<usize, c_int> {
        let mut bytes = 0;
        // SAFETY: the program is one of this library; it writes one number.
        match unsafe { (self.nvrtc.functions.ptx_size)(self.program, &raw mut bytes) } {
            0 => Ok(bytes),
            result => Err(result),
        }
    }

    /// The PTX with its NUL.
    pub(crate) fn ptx(&self) -> Result<Vec<u8>, c_int> {
        let functions = &self.nvrtc.functions;
        self.text(functions.ptx_size, functions.ptx)
    }

    fn text(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, c_int> {
        let mut bytes = 0;
        // SAFETY: the program is one of this library; it writes one number.
        match unsafe { size(self.program, &raw mut bytes) } {
            0 => {}
            result => return Err(result),
        }
        let mut text = vec![0u8; bytes];
        // SAFETY: it writes as many bytes as it has said, of a program that does not change.
        match unsafe { get(self.program, text.as_mut_ptr().cast()) } {
            0 => Ok(text),
            result => Err(result),
        }
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: it is one of this library, and nobody uses it any more.
        unsafe { (self.nvrtc.functions.destroy)(&raw mut self.program) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_directory_comes_first_and_other_libraries_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libnvrtc.so.11.2",
            "libnvrtc.so.12",
            "libnvrtc.so.12.8.93",
            "libnvrtc-builtins.so.12.8",
            "libnvrtc.alt.so.12",
            "libnvrtc_static.a",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = in_folder(folder.path());
        let names: Vec<_> = found
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["libnvrtc.so.12.8.93", "libnvrtc.so.12", "libnvrtc.so.11.2"]
        );
        assert!(in_folder(Path::new("/nowhere")).is_empty());
        // Neither is a library.
        assert!(Nvrtc::load(&found[0]).is_err());
        assert!(Nvrtc::load(Path::new("libc.so.6")).is_err());
    }

    #[test]
    fn versions_are_those_of_cuda() {
        let version = Version::of_driver(12_080);
        assert_eq!(version.to_string(), "12.8");
        assert!(version < Version::of_driver(13_000));
    }
}
