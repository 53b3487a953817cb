//! Every program of `examples/` computes what it says, with a mediator's session in this process.

#![allow(dead_code, reason = "each is a program of its own, with a `main`")]

mod script;

#[path = "../examples/graph.rs"]
mod graph;
#[path = "../examples/mandelbrot.rs"]
mod mandelbrot;
#[path = "../examples/matmul.rs"]
mod matmul;
#[path = "../examples/reduction.rs"]
mod reduction;
#[path = "../examples/saxpy.rs"]
mod saxpy;
#[path = "../examples/two_streams.rs"]
mod two_streams;
#[path = "../examples/vector_add.rs"]
mod vector_add;

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use script::cpu;
use vgpu_guest::{Client, Device, Options};
use vgpu_socket_transport::SocketTransport;

fn client() -> Client {
    let (own, theirs) = UnixStream::pair().unwrap();
    // Ends with the session.
    thread::spawn(move || cpu::serve(theirs));
    let transport = SocketTransport::from_unix(own).unwrap();
    Client::over(Box::new(transport), &Options::default()).unwrap()
}

/// Runs an example with a device of its own.
fn with_device<E: std::fmt::Display>(example: impl FnOnce(&Device) -> Result<(), E>) {
    let device = Device::new(client()).unwrap();
    if let Err(error) = example(&device) {
        panic!("{error}");
    }
    device.goodbye().unwrap();
}

#[test]
fn vector_add_adds() {
    let mut client = client();
    vector_add::add(&mut client).unwrap();
    client.goodbye().unwrap();
}

#[test]
fn saxpy_scales_and_adds() {
    with_device(saxpy::run);
}

#[test]
fn matmul_multiplies() {
    with_device(matmul::multiply);
}

#[test]
fn reduction_adds_up() {
    with_device(reduction::add_up);
}

#[test]
fn two_streams_take_turns() {
    with_device(two_streams::by_turns);
}

#[test]
fn a_graph_does_what_its_kernels_do() {
    with_device(graph::both_ways);
}

#[test]
fn mandelbrot_draws_a_picture() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mandelbrot.png");
    with_device(|device| mandelbrot::draw(device, &path));
    let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let mut picture = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; picture.output_buffer_size().unwrap()];
    let frame = picture.next_frame(&mut pixels).unwrap();
    assert_eq!((frame.width, frame.height), (480, 320));
    // The point 0, 0 never leaves; that at the left edge leaves at once.
    assert_eq!((pixels[160 * 480 + 360], pixels[160 * 480]), (0, 254));
}

#[test]
fn no_example_is_left_out() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let names: BTreeSet<String> = std::fs::read_dir(examples)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    for name in &names {
        let module = format!("\nmod {name};\n");
        assert!(include_str!("examples.rs").contains(&module), "{name}");
    }
}
