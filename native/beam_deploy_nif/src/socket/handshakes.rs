//! TCP handshakes that wait for their last packet, asked of the kernel by sock_diag(7).

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_DUMP, NLM_F_REQUEST,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags, Timer,
};
use netlink_packet_sock_diag::SockDiagMessage;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{netlink, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::Error;

/// After so long without the client's last packet the kernel repeats its own; doubled each time.
const FIRST_RETRANSMISSION: u64 = 1_000;
/// A dump is not longer than that for each read.
const BUFFER: usize = 32 * 1024;
/// The kernel answers within the call; this only keeps a thread from waiting for ever.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
pub enum Family {
    V4,
    /// Also IPv4 connections of a dual-stack listener.
    V6,
}

/// How many handshakes of these local ports have an age in milliseconds within the range.
///
/// The kernel walks its whole table of connections for it, some 20 ms.
pub fn count(family: Family, ports: &[u16], ages: Range<u64>) -> Result<usize, Error> {
    let socket = ask(family)?;
    let mut buffer = vec![0; BUFFER];
    let mut count = 0;
    loop {
        let (_initialised, size) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(malformed)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    count += usize::from(matches(&response.header, ports, &ages));
                }
                NetlinkPayload::Done(_) => return Ok(count),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn ask(family: Family) -> Result<OwnedFd, Error> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;

    let (family, socket_id) = match family {
        Family::V4 => (AF_INET, SocketId::new_v4()),
        Family::V6 => (AF_INET6, SocketId::new_v6()),
    };
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::SYN_RECV,
        socket_id,
    });
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    Ok(socket)
}

fn matches(header: &InetResponseHeader, ports: &[u16], ages: &Range<u64>) -> bool {
    ports.contains(&header.socket_id.source_port) && ages.contains(&age(header.timer.as_ref()))
}

/// The timer of a handshake runs out after 1 s, then 2, 4, ...: what is left of it tells when it began.
fn age(timer: Option<&Timer>) -> u64 {
    match timer {
        Some(Timer::Retransmit(left, repeated)) => {
            let doublings = u32::from(*repeated).saturating_add(1).min(16);
            let until_it_runs_out = FIRST_RETRANSMISSION * ((1 << doublings) - 1);
            until_it_runs_out.saturating_sub(left.as_millis() as u64)
        }
        _ => 0,
    }
}

fn malformed(error: impl ToString) -> Error {
    Error::Other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_what_the_timers_so_far_have_taken() {
        let timer = |left, repeated| Timer::Retransmit(Duration::from_millis(left), repeated);
        assert_eq!(age(Some(&timer(1_000, 0))), 0);
        assert_eq!(age(Some(&timer(990, 0))), 10);
        assert_eq!(age(Some(&timer(2_000, 1))), 1_000);
        assert_eq!(age(Some(&timer(500, 1))), 2_500);
        assert_eq!(age(Some(&timer(0, 2))), 7_000);
        assert_eq!(age(Some(&timer(0, 255))), 65_535_000);
    }
}
