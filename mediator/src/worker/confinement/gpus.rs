//! The device files of NVIDIA's driver that a worker sees.
//!
//! A GPU's file is `/dev/nvidiaN`, whose minor number N is the driver's own: it need not be the GPU's place in the order
//! of the PCI bus. The driver tells it in a file of its own for each GPU. Where that cannot be read, or names no file that
//! is there, the worker sees the files of all GPUs, and what its driver is told in its environment counts alone.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Directory with a directory for each GPU, named by its place on the PCI bus.
const DRIVER: &str = "/proc/driver/nvidia/gpus";

/// Major number of the driver's device files (`nvidia-frontend` in `/proc/devices`).
const MAJOR: u64 = 195;

/// Minor numbers of GPUs lie below this; `/dev/nvidiactl` and `/dev/nvidia-modeset` have 255 and 254.
const MOST_GPUS: u64 = 254;

/// The device files of NVIDIA's driver: those of the GPUs at these places, and those that no single GPU has.
pub(super) fn device_files(places: Option<&[String]>) -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let files = entries
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"nvidia"))
        .map(|entry| (gpu_of(&entry.path()), entry.path()))
        .collect();
    let wanted = places.and_then(|places| minors(Path::new(DRIVER), places));
    shown(files, wanted.as_deref())
}

/// The minor number, if it is a GPU's own file.
fn gpu_of(path: &Path) -> Option<u64> {
    let file = fs::metadata(path).ok()?;
    let (of_driver, number) = (major(file.rdev()) == MAJOR, minor(file.rdev()));
    (file.file_type().is_char_device() && of_driver && number < MOST_GPUS).then_some(number)
}

/// Of these files, each with its GPU's number, what a worker sees that may use the GPUs with the numbers `wanted`.
fn shown(files: Vec<(Option<u64>, PathBuf)>, wanted: Option<&[u64]>) -> Vec<PathBuf> {
    // Known only if each of them is there.
    let wanted = wanted.filter(|wanted| {
        let is_there = |number: &u64| files.iter().any(|(gpu, _)| *gpu == Some(*number));
        wanted.iter().all(is_there)
    });
    let is_shown = |gpu: Option<u64>| match (gpu, wanted) {
        (Some(gpu), Some(wanted)) => wanted.contains(&gpu),
        _ => true,
    };
    let shown = files.into_iter().filter(|(gpu, _)| is_shown(*gpu));
    shown.map(|(_, path)| path).collect()
}

/// The minor numbers of the GPUs at these places, by the files below `driver`.
fn minors(driver: &Path, places: &[String]) -> Option<Vec<u64>> {
    let minor = |place: &String| {
        // From the broker; nevertheless nothing that leads elsewhere.
        let is_place = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if !place.bytes().all(is_place) || place.contains("..") {
            return None;
        }
        let text = fs::read_to_string(driver.join(place).join("information")).ok()?;
        minor_in(&text)
    };
    places.iter().map(minor).collect()
}

/// The number in the line `Device Minor:`.
fn minor_in(information: &str) -> Option<u64> {
    let mut lines = information.lines();
    let number = lines.find_map(|line| line.strip_prefix("Device Minor:"))?;
    number
        .trim()
        .parse()
        .ok()
        .filter(|number| *number < MOST_GPUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As driver 580 writes it.
    fn information(minor: &str) -> String {
        format!(
            "Model: \t\t NVIDIA H200\nIRQ:   \t\t 284\nGPU UUID: \t GPU-0a1b2c3d-0000-4000-8000-00000000beef\n\
             Bus Location: \t 0000:3b:00.0\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    }

    fn files() -> Vec<(Option<u64>, PathBuf)> {
        let file = |gpu, name: &str| (gpu, PathBuf::from("/dev").join(name));
        vec![
            file(Some(0), "nvidia0"),
            file(Some(1), "nvidia1"),
            file(None, "nvidiactl"),
            file(None, "nvidia-uvm"),
        ]
    }

    #[test]
    fn a_worker_sees_the_files_of_its_gpus_and_those_of_none() {
        let names = |wanted: Option<&[u64]>| {
            let shown = shown(files(), wanted);
            let names = shown
                .iter()
                .map(|path| path.file_name().unwrap().to_owned());
            names
                .map(|name| name.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Some(&[1])), ["nvidia1", "nvidiactl", "nvidia-uvm"]);
        assert_eq!(names(None).len(), 4);
        // What is not understood hides nothing.
        assert_eq!(names(Some(&[1, 2])).len(), 4);
    }

    #[test]
    fn a_number_is_what_the_driver_says_of_the_place_and_no_guess() {
        let folder = tempfile::tempdir().unwrap();
        let gpu = |place: &str, minor: &str| {
            let folder = folder.path().join(place);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("information"), information(minor)).unwrap();
        };
        // Not in the order of the bus.
        gpu("0000:3b:00.0", "1");
        gpu("0000:af:00.0", "0");
        gpu("0000:b0:00.0", "255");
        let of = |places: &[&str]| {
            let places: Vec<String> = places.iter().map(|it| (*it).to_owned()).collect();
            minors(folder.path(), &places)
        };
        assert_eq!(of(&["0000:3b:00.0"]), Some(vec![1]));
        assert_eq!(of(&["0000:af:00.0", "0000:3b:00.0"]), Some(vec![0, 1]));
        assert_eq!(of(&["0000:b0:00.0"]), None);
        assert_eq!(of(&["0000:3b:00.0", "0000:00:00.0"]), None);
        assert_eq!(of(&["../0000:3b:00.0"]), None);
        assert_eq!(minor_in("Model: x\n"), None);
    }

    #[test]
    fn ordinary_files_are_no_gpus() {
        assert_eq!(gpu_of(Path::new("/dev/null")), None);
        assert_eq!(gpu_of(Path::new("/proc/self/stat")), None);
    }
}
