use super::*;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::SockFilter;

const BACKLOG: i32 = 128;

fn pair(ip: impl Into<IpAddr>) -> Result<(Pair, SocketAddr), Error> {
    let ip = ip.into();
    let pair = Pair::inet((ip, 0).into(), Some(false), BACKLOG, true, 0)?;
    let address = (ip, pair.port()?).into();
    Ok((pair, address))
}

fn await_true(what: &str, mut condition: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition()? {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn every_connection_goes_to_the_steered_side() -> Result<(), Error> {
    for ip in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        let (pair, address) = pair(ip)?;
        let mut clients = Vec::new();
        for side in [0, 1, 0] {
            pair.steer(side)?;
            let (before, other) = (pair.queue(side)?, pair.queue(1 - side)?);
            for _ in 0..20 {
                clients.push(TcpStream::connect(address)?);
            }
            await_true("20 more connections", || {
                Ok(pair.queue(side)? == before + 20)
            })?;
            assert_eq!(pair.queue(1 - side)?, other);
        }
    }
    Ok(())
}

#[test]
fn a_dual_stack_pair_steers_both_kinds() -> Result<(), Error> {
    let (pair, address) = pair(Ipv6Addr::UNSPECIFIED)?;
    pair.steer(1)?;
    let _four = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port()))?;
    let _six = TcpStream::connect((Ipv6Addr::LOCALHOST, address.port()))?;
    await_true("two connections", || Ok(pair.queue(1)? == 2))?;
    assert_eq!(pair.queue(0)?, 0);

    let only = Pair::inet(
        (Ipv6Addr::LOCALHOST, 0).into(),
        Some(true),
        BACKLOG,
        true,
        0,
    )?;
    only.steer(0)?;
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, only.port()?)).is_err());
    Ok(())
}

#[test]
fn nobody_gets_in_before_the_first_steering() -> Result<(), Error> {
    let (pair, address) = pair(Ipv4Addr::LOCALHOST)?;
    assert!(TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_err());
    assert_eq!((pair.queue(0)?, pair.queue(1)?), (0, 0));
    // A client that has begun by then gets in when it tries again.
    let client = std::thread::spawn(move || TcpStream::connect(address));
    std::thread::sleep(Duration::from_millis(100));
    pair.steer(1)?;
    let client = client.join();
    assert!(matches!(client, Ok(Ok(_))));
    await_true("one connection", || {
        Ok((pair.queue(0)?, pair.queue(1)?) == (0, 1))
    })
}

#[test]
fn where_connections_cannot_be_held_back_they_go_to_the_first_side() -> Result<(), Error> {
    let refused = |_socket: &Socket| Err(std::io::Error::from_raw_os_error(libc::EPERM));
    for first in [0, 1] {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let sides = inet::open_held_by(refused, any, None, BACKLOG, first)?;
        let pair = Pair::new(sides, Place::Inet);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, pair.port()?));
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TcpStream::connect(address)?);
        }
        await_true("20 connections", || Ok(pair.queue(first)? == 20))?;
        let other = 1 - first;
        pair.steer(other)?;
        for _ in 0..20 {
            clients.push(TcpStream::connect(address)?);
        }
        await_true("20 connections more", || {
            Ok((pair.queue(first)?, pair.queue(other)?) == (20, 20))
        })?;
    }
    Ok(())
}

#[test]
fn an_address_that_somebody_listens_on_is_refused() -> Result<(), Error> {
    let (pair, address) = pair(Ipv4Addr::LOCALHOST)?;
    let in_use = |result| matches!(result, Err(Error::Os(libc::EADDRINUSE)));
    assert!(in_use(Pair::inet(address, None, BACKLOG, true, 0)));
    pair.close()?;
    assert!(Pair::inet(address, None, BACKLOG, true, 0).is_ok());
    Ok(())
}

#[test]
fn a_closed_pair_refuses_connections_and_all_use() -> Result<(), Error> {
    let (pair, address) = pair(Ipv4Addr::LOCALHOST)?;
    pair.steer(0)?;
    pair.close()?;
    pair.close()?;
    let refused = TcpStream::connect(address).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
    let closed = |result| matches!(result, Err(Error::Os(libc::EBADF)));
    assert!(closed(pair.steer(0)));
    assert!(closed(pair.queue(0).map(drop)));
    assert!(closed(pair.descriptor(0).map(drop)));
    Ok(())
}

#[test]
fn a_side_that_does_not_exist_is_refused() -> Result<(), Error> {
    let (pair, _address) = pair(Ipv4Addr::LOCALHOST)?;
    assert!(matches!(pair.steer(2), Err(Error::BadArgument("side"))));
    Ok(())
}

#[test]
fn discarded_connections_are_reset() -> Result<(), Error> {
    let (pair, address) = pair(Ipv4Addr::LOCALHOST)?;
    pair.steer(1)?;
    let mut client = TcpStream::connect(address)?;
    await_true("a connection", || Ok(pair.queue(1)? == 1))?;
    assert_eq!(pair.discard(0)?, 0);
    assert_eq!(pair.discard(1)?, 1);
    let read = client.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(read, Err(std::io::ErrorKind::ConnectionReset));
    Ok(())
}

/// The kernel's own numbers: SYN is bit 1 of the byte at offset 13 of the TCP header.
fn only_syn() -> [SockFilter; 4] {
    [
        SockFilter::new(
            (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16,
            0,
            0,
            13,
        ),
        SockFilter::new(
            (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16,
            0,
            1,
            2,
        ),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0),
    ]
}

#[test]
fn handshakes_are_counted_by_port_and_age() -> Result<(), Error> {
    for (listen, connect, family) in [
        (
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V4,
        ),
        (
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6,
        ),
    ] {
        let (pair, address) = pair(listen)?;
        pair.steer(0)?;
        // The listener does not get the packet that ends a handshake.
        pair.with(|open| Ok(open.side(0)?.attach_filter(&only_syn())?))?;
        let count = |ages| count_handshakes(family, &[address.port()], ages);
        assert_eq!(count(0..60_000)?, 0);
        let began = Instant::now();
        let _client = TcpStream::connect((connect, address.port()))?;
        await_true("a handshake", || Ok(count(0..60_000)? == 1))?;
        assert_eq!(pair.queue(0)?, 0);
        assert_eq!(count_handshakes(family, &[1], 0..60_000)?, 0);
        assert_eq!(count(5_000..60_000)?, 0);
        await_true("it gets older", || Ok(count(100..60_000)? == 1))?;
        assert!(began.elapsed() >= Duration::from_millis(90));
    }
    Ok(())
}

fn local() -> Result<(tempfile::TempDir, std::path::PathBuf, Pair), Error> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("s");
    let pair = Pair::local(&path, BACKLOG)?;
    Ok((directory, path, pair))
}

#[test]
fn a_public_name_leads_to_one_side() -> Result<(), Error> {
    let (_directory, path, pair) = local()?;
    assert!(UnixStream::connect(&path).is_err());
    let mut clients = Vec::new();
    for side in [0, 1, 1, 0] {
        assert_eq!(
            pair.discard(side)? + pair.discard(1 - side)?,
            clients.drain(..).count() as u32
        );
        pair.steer(side)?;
        clients.push(UnixStream::connect(&path)?);
        assert_eq!((pair.queue(side)?, pair.queue(1 - side)?), (1, 0));
    }
    Ok(())
}

#[test]
fn mode_of_a_public_name_stays_across_steering() -> Result<(), Error> {
    let (_directory, path, pair) = local()?;
    pair.steer(0)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o751))?;
    pair.steer(1)?;
    assert_eq!(
        std::fs::metadata(&path)?.permissions().mode() & 0o777,
        0o751
    );
    Ok(())
}

#[test]
fn names_go_with_the_pair_and_are_taken_from_the_dead_only() -> Result<(), Error> {
    let (directory, path, pair) = local()?;
    pair.steer(0)?;
    let in_use = |result| matches!(result, Err(Error::Os(libc::EADDRINUSE)));
    assert!(in_use(Pair::local(&path, BACKLOG)));
    // Sockets that are closed without a word leave their names.
    drop(pair);
    assert!(path.exists());
    let pair = Pair::local(&path, BACKLOG)?;
    pair.steer(1)?;
    pair.close()?;
    assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);

    std::fs::write(&path, "no socket")?;
    assert!(in_use(Pair::local(&path, BACKLOG)));
    Ok(())
}
