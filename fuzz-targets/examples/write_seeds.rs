//! `write_seeds DIR`: each target's seeds as files `DIR/TARGET/seed-N`, for libFuzzer to start from.

use std::fs;
use std::io;
use std::path::PathBuf;

use vgpu_fuzz_targets::TARGETS;

fn main() -> io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("usage: write_seeds DIR"));
    };
    for target in TARGETS {
        let folder = dir.join(target.name);
        fs::create_dir_all(&folder)?;
        for (n, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{n}")), seed)?;
        }
    }
    Ok(())
}
