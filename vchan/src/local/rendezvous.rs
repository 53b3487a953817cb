#![forbid(unsafe_code)]
//! From a connected Unix stream to a channel, in both roles.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};

use super::bell::Bell;
use super::doorbell::LocalBackend;
use super::hello::{HELLO_BYTES, Hello, REPLY_BYTES, Refusal, Reply, decode_reply, encode_reply};
use super::memory_layout::{MOST_BYTES, Pieces, Shape};
use super::stranger::Stranger;
use super::{descriptors, memory};
use crate::backend::{Backend, Parts, wait_for_client};
use crate::channel::Channel;
use crate::connect_options::Setup;
use crate::error::{Error, PeerError, Result};
use crate::reactor::Handle;
use crate::wire::control_page::ControlPage;
use crate::wire::extension::{Acceptance, Header};
use crate::wire::extension_page::{ExtensionPage, new_nonce};
use crate::wire::layout::{Format, ORDER_MAX_LOCAL, Orders, PAGE, RingSizes, Role};

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
    serve_with(&Setup::new(), stream, rings, deadline)
}

/// [`serve_on`] with the channel on a reactor. Waits for the client all the same.
///
/// # Errors
/// As [`serve_on`].
pub fn serve_on_reactor(
    reactor: &Handle,
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    deadline: Instant,
) -> Result<Channel> {
    serve_with(&Setup::new().reactor(reactor), stream, rings, deadline)
}

/// [`serve_on`] with both rings starting at `first_index` instead of 0, for tests of the indexes'
/// wrap-around.
///
/// # Errors
/// As [`serve_on`].
#[doc(hidden)]
pub fn serve_from_index(
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    first_index: u32,
    deadline: Instant,
) -> Result<Channel> {
    serve_with(
        &Setup::new().first_index(first_index),
        stream,
        rings,
        deadline,
    )
}

/// [`serve_on`] with a choice of format and the rest of [`Setup`].
///
/// # Errors
/// As [`serve_on`].
pub fn serve_with(
    setup: &Setup<'_>,
    stream: UnixStream,
    rings: impl Into<RingSizes>,
    deadline: Instant,
) -> Result<Channel> {
    Channel::from_parts(serve_parts(setup, stream, rings.into(), deadline)?)
}

/// Builds the parts of [`serve_with`]'s channel.
pub(crate) fn serve_parts(
    setup: &Setup<'_>,
    stream: UnixStream,
    rings: RingSizes,
    deadline: Instant,
) -> Result<Parts> {
    let stream = Stranger::from(stream);
    let shape = Shape::choose(setup.format, rings)?;
    let memory = memory::create(shape.bytes())?;
    let region = memory::map(&memory, shape.bytes())?;
    let pieces = shape.divide(&region);
    pieces
        .control
        .initialise(shape.orders.classic(), setup.first_index);
    let offer = match &pieces.extension {
        Some(page) => {
            let offer = Header::offer(shape.orders, new_nonce()?);
            page.initialise(&offer, setup.first_index);
            Some((page, offer))
        }
        None => None,
    };

    let (from_client, to_server) = Bell::pair()?;
    let (to_client, from_server) = Bell::pair()?;
    let hello = Hello {
        memory_bytes: shape.bytes() as u64,
        extension: offer.map(|(_, offer)| offer.nonce),
    };
    let fds = [memory.as_fd(), to_server.as_fd(), from_server.as_fd()];
    descriptors::send(&stream, &hello.encode(), &fds, deadline)?;

    // These are the client's: dropped so that they go when it goes.
    drop((to_server, from_server));

    let mut reply = [0; REPLY_BYTES];
    descriptors::receive(&stream, &mut reply, 0, deadline)?;
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
    let backend = backend(setup.reactor, from_client, to_client, stream)?;
    wait_for_client(&pieces.control, &backend, deadline)?;
    let accepted = match &offer {
        Some((page, offer)) => page.acceptance(offer)?,
        None => None,
    };
    let orders = match accepted {
        Some(acceptance) => acceptance.orders(shape.orders),
        None => shape.orders.classic(),
    };
    let (left, right) = pieces.rings(orders);
    Ok(Parts {
        role: Role::Server,
        orders,
        first_index: Some(setup.first_index),
        extension: accepted.and(pieces.extension),
        control: pieces.control,
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
    connect_with(&Setup::new(), stream, deadline)
}

/// [`connect_on`] with the channel on a reactor. Waits for the server all the same.
///
/// # Errors
/// As [`connect_on`].
pub fn connect_on_reactor(
    reactor: &Handle,
    stream: UnixStream,
    deadline: Instant,
) -> Result<Channel> {
    connect_with(&Setup::new().reactor(reactor), stream, deadline)
}

/// [`connect_on`] with a choice of format and the rest of [`Setup`].
///
/// # Errors
/// As [`connect_on`].
pub fn connect_with(setup: &Setup<'_>, stream: UnixStream, deadline: Instant) -> Result<Channel> {
    Channel::from_parts(connect_parts(setup, stream, deadline)?)
}

/// Builds the parts of [`connect_with`]'s channel.
pub(crate) fn connect_parts(
    setup: &Setup<'_>,
    stream: UnixStream,
    deadline: Instant,
) -> Result<Parts> {
    let stream = Stranger::from(stream);
    let mut hello = [0; HELLO_BYTES];
    let fds = descriptors::receive(&stream, &mut hello, 3, deadline)?;
    let answer = |reply: Reply| descriptors::send(&stream, &encode_reply(reply), &[], deadline);
    let Offer {
        pieces,
        orders,
        extension,
        to_server,
        from_server,
    } = match examine(&hello, fds, setup.format) {
        Ok(offer) => offer,
        Err(error) => {
            let refusal = match error {
                Error::Peer(_) => Refusal::Invalid,
                _ => Refusal::NoMemory,
            };
            // The first error is the one to report.
            let _ = answer(Err(refusal));
            return Err(error);
        }
    };
    if let Some((page, acceptance)) = &extension {
        page.accept(acceptance);
    }
    pieces.control.connect_client();
    answer(Ok(()))?;
    let backend = backend(setup.reactor, from_server, to_server, stream)?;
    backend
        .notify()
        .map_err(|source| Error::os("cannot ring the peer's doorbell", source))?;
    let (left, right) = pieces.rings(orders);
    Ok(Parts {
        role: Role::Client,
        orders,
        first_index: None,
        control: pieces.control,
        extension: extension.map(|(page, _)| page),
        left,
        right: right.read_only(),
        backend: Box::new(backend),
    })
}

/// A server's offer, checked.
struct Offer {
    pieces: Pieces,
    /// Orders of the rings in use.
    orders: Orders,
    /// The extension page and the answer to write there, if it will be used.
    extension: Option<(ExtensionPage, Acceptance)>,
    to_server: Bell,
    from_server: Bell,
}

fn examine(
    hello: &[u8; HELLO_BYTES],
    fds: Vec<Stranger<OwnedFd>>,
    format: Format,
) -> Result<Offer> {
    let refuse = |why: String| Err(PeerError::Rendezvous(why).into());
    let hello = Hello::decode(hello)?;
    let Ok([memory, to_server, from_server]) = <[Stranger<OwnedFd>; 3]>::try_from(fds) else {
        return refuse("its hello does not come with three descriptors".to_owned());
    };
    let (to_server, from_server) = (Bell::from_peer(to_server)?, Bell::from_peer(from_server)?);
    let least = PAGE * (1 + usize::from(hello.extension.is_some()));
    let bytes = match usize::try_from(hello.memory_bytes) {
        Ok(bytes) if (least..=MOST_BYTES).contains(&bytes) => bytes,
        _ => return refuse(format!("it offers {} bytes of memory", hello.memory_bytes)),
    };
    let region = memory::map(&memory, bytes)?;
    let control = ControlPage::new(region.part(0, PAGE));
    let classic = control.orders()?;
    // A client that does not use the extension still needs it to find the rings.
    let (extension, offered) = match hello.extension {
        Some(nonce) => {
            let page = ExtensionPage::new(region.part(PAGE, PAGE));
            let header = page.header()?;
            let (acceptance, offered) = header
                .check(classic, &nonce, ORDER_MAX_LOCAL)
                .map_err(PeerError::from)?;
            (Some((page, acceptance)), offered)
        }
        None => (None, classic),
    };
    let shape = Shape {
        orders: offered,
        extension: extension.is_some(),
    };
    if bytes != shape.bytes() {
        return refuse(format!(
            "it offers {bytes} bytes for rings that need {}",
            shape.bytes()
        ));
    }
    if !control.server_is_live() || control.client_arrived() {
        return refuse("its control page does not await a client".to_owned());
    }
    let extension = extension.filter(|_| format == Format::Extended);
    let orders = match &extension {
        Some((_, acceptance)) => acceptance.orders(offered),
        None => classic,
    };
    Ok(Offer {
        pieces: shape.divide(&region),
        orders,
        extension,
        to_server,
        from_server,
    })
}

fn backend(
    reactor: Option<&Handle>,
    own: Bell,
    peers: Bell,
    stream: Stranger<UnixStream>,
) -> Result<LocalBackend> {
    let name = describe(&stream);
    LocalBackend::new(reactor, own, peers, stream, name)
}

/// `local:PATH` where the socket has a path, else the peer's process id.
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
