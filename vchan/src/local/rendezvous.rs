#![forbid(unsafe_code)]
//! From a connected Unix stream to a channel, in both roles.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::fcntl::readlink;
use nix::sys::socket::{getsockopt, sockopt};

use super::doorbell::{LocalBackend, new_eventfd};
use super::hello::{HELLO_BYTES, Hello, REPLY_BYTES, Refusal, Reply, decode_reply, encode_reply};
use super::{descriptors, memory};
use crate::backend::{Backend, Parts, wait_for_client};
use crate::channel::Channel;
use crate::error::{Error, PeerError, Result};
use crate::layout::{ORDER_MAX, Orders, PAGE, RingPlace, RingSizes, Role};
use crate::reactor::Handle;
use crate::shm::{ControlPage, Region};

/// Takes the vchan server role on a connected stream: makes the memory, sends it, and waits for
/// the client to map it.
///
/// # Errors
/// [`Error::Setup`] for impossible ring sizes, [`Error::TimedOut`], [`Error::PeerClosed`],
/// [`Error::Peer`], [`Error::Os`].
pub fn serve_on(
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    deadline: Instant,
) -> Result<Channel> {
    serve_from_index(stream, rings, 0, deadline)
}

/// [`serve_on`] with the channel on a reactor. Waits for the client all the same.
///
/// # Errors
/// As there.
pub fn serve_on_reactor(
    reactor: &Handle,
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    deadline: Instant,
) -> Result<Channel> {
    serve_over(Some(reactor), stream, rings.into(), 0, deadline)
}

/// [`serve_on`] with both rings starting at `first_index` instead of 0, for tests of the indexes'
/// wrap-around.
///
/// # Errors
/// As [`serve_on`].
pub fn serve_from_index(
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    first_index: u32,
    deadline: Instant,
) -> Result<Channel> {
    serve_over(None, stream, rings.into(), first_index, deadline)
}

fn serve_over(
    reactor: Option<&Handle>,
    stream: UnixStream,
    rings: RingSizes,
    first_index: u32,
    deadline: Instant,
) -> Result<Channel> {
    let orders = orders(rings)?;
    let memory_bytes = PAGE * (1 + orders.grant_count());
    let memory = memory::create(memory_bytes)?;
    let region = memory::map(&memory, memory_bytes)?;
    let (control, left, right) = divide(&region, orders);
    control.initialise(orders, first_index);

    let eventfd = || new_eventfd().map_err(|errno| Error::os("cannot create an eventfd", errno));
    let (to_server, to_client) = (eventfd()?, eventfd()?);
    let hello = Hello {
        memory_bytes: memory_bytes as u64,
    };
    let fds = [memory.as_fd(), to_server.as_fd(), to_client.as_fd()];
    descriptors::send(&stream, &hello.encode(), &fds, deadline)?;

    let mut reply = [0; REPLY_BYTES];
    if !descriptors::receive(&stream, &mut reply, deadline)?.is_empty() {
        return Err(PeerError::Rendezvous("its reply came with descriptors".to_owned()).into());
    }
    match decode_reply(&reply)? {
        Ok(()) => {}
        Err(Refusal::Invalid) => {
            return Err(Error::setup(
                "the client refuses the memory it was offered",
                "use the same version of vchan on both sides",
            ));
        }
        Err(Refusal::NoMemory) => {
            return Err(Error::setup(
                "the client cannot map the memory",
                "free some memory there, or use smaller rings",
            ));
        }
    }
    let backend = backend(reactor, to_server, to_client, stream)?;
    wait_for_client(&control, &backend, deadline)?;
    Channel::from_parts(Parts {
        role: Role::Server,
        orders,
        first_index: Some(first_index),
        control,
        left: left.read_only(),
        right,
        backend: Box::new(backend),
    })
}

/// Takes the vchan client role on a connected stream: waits for the server's memory, checks and
/// maps it.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::PeerClosed`], [`Error::Peer`], [`Error::Os`].
pub fn connect_on(stream: UnixStream, deadline: Instant) -> Result<Channel> {
    connect_over(None, stream, deadline)
}

/// [`connect_on`] with the channel on a reactor. Waits for the server all the same.
///
/// # Errors
/// As there.
pub fn connect_on_reactor(
    reactor: &Handle,
    stream: UnixStream,
    deadline: Instant,
) -> Result<Channel> {
    connect_over(Some(reactor), stream, deadline)
}

fn connect_over(
    reactor: Option<&Handle>,
    stream: UnixStream,
    deadline: Instant,
) -> Result<Channel> {
    let mut hello = [0; HELLO_BYTES];
    let fds = descriptors::receive(&stream, &mut hello, deadline)?;
    let answer = |reply: Reply| descriptors::send(&stream, &encode_reply(reply), &[], deadline);
    let offer = match examine(&hello, fds) {
        Ok(offer) => offer,
        Err(error) => {
            let refusal = match error {
                Error::Peer(_) => Refusal::Invalid,
                _ => Refusal::NoMemory,
            };
            // The error to report is the first one.
            let _ = answer(Err(refusal));
            return Err(error);
        }
    };
    let (control, left, right) = divide(&offer.region, offer.orders);
    control.connect_client();
    answer(Ok(()))?;
    let backend = backend(reactor, offer.to_client, offer.to_server, stream)?;
    backend
        .notify()
        .map_err(|source| Error::os("cannot ring the peer's doorbell", source))?;
    Channel::from_parts(Parts {
        role: Role::Client,
        orders: offer.orders,
        first_index: None,
        control,
        left,
        right: right.read_only(),
        backend: Box::new(backend),
    })
}

/// What a client was sent, checked.
struct Offer {
    region: Region,
    orders: Orders,
    to_server: OwnedFd,
    to_client: OwnedFd,
}

fn examine(hello: &[u8; HELLO_BYTES], fds: Vec<OwnedFd>) -> Result<Offer> {
    let refuse = |why: String| Err(PeerError::Rendezvous(why).into());
    let hello = Hello::decode(hello)?;
    let Ok([memory, to_server, to_client]) = <[OwnedFd; 3]>::try_from(fds) else {
        return refuse("its hello does not come with three descriptors".to_owned());
    };
    for fd in [&to_server, &to_client] {
        if !is_eventfd(fd) {
            return refuse("a doorbell it sent is not an eventfd".to_owned());
        }
    }
    let most = PAGE * (1 + 2 * (1 << ORDER_MAX) / PAGE);
    let bytes = match usize::try_from(hello.memory_bytes) {
        Ok(bytes) if (PAGE..=most).contains(&bytes) => bytes,
        _ => return refuse(format!("it offers {} bytes of memory", hello.memory_bytes)),
    };
    let region = memory::map(&memory, bytes)?;
    let control = ControlPage::new(region.part(0, PAGE));
    let orders = control.orders()?;
    let needed = PAGE * (1 + orders.grant_count());
    if bytes != needed {
        return refuse(format!(
            "it offers {bytes} bytes for rings that need {needed}"
        ));
    }
    if !control.server_is_live() || control.client_arrived() {
        return refuse("its control page does not await a client".to_owned());
    }
    Ok(Offer {
        region,
        orders,
        to_server,
        to_client,
    })
}

/// The ring orders for wished sizes.
pub(super) fn orders(rings: RingSizes) -> Result<Orders> {
    Orders::choose(rings)
        .map_err(|error| Error::setup(error.to_string(), "ask for rings of at most 1048576 bytes"))
}

/// The memory is the control page, then the left ring's pages, then the right ring's.
pub(super) fn divide(region: &Region, orders: Orders) -> (ControlPage, Region, Region) {
    let control = ControlPage::new(region.part(0, PAGE));
    let mut next = PAGE;
    let mut ring = |place: RingPlace| {
        control.ring_in_page(place).unwrap_or_else(|| {
            let part = region.part(next, PAGE * place.pages());
            next += part.len();
            part
        })
    };
    let (left, right) = (ring(orders.left_place()), ring(orders.right_place()));
    (control, left, right)
}

fn backend(
    reactor: Option<&Handle>,
    own: OwnedFd,
    peers: OwnedFd,
    stream: UnixStream,
) -> Result<LocalBackend> {
    let name = describe(&stream);
    LocalBackend::new(reactor, own, peers, stream, name)
}

/// `local:PATH` where the socket has one, else the peer's process.
fn describe(stream: &UnixStream) -> String {
    let path = |address: std::io::Result<std::os::unix::net::SocketAddr>| {
        address
            .ok()
            .and_then(|address| address.as_pathname().map(ToOwned::to_owned))
    };
    if let Some(path) = path(stream.peer_addr()).or_else(|| path(stream.local_addr())) {
        return format!("local:{}", path.display());
    }
    match getsockopt(stream, sockopt::PeerCredentials) {
        Ok(peer) => format!("local: process {}", peer.pid()),
        Err(_) => "local: unnamed socket".to_owned(),
    }
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    readlink(link.as_str()).is_ok_and(|target| target == "anon_inode:[eventfd]")
}
