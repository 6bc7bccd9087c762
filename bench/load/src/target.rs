//! Where the load may go: loopback and addresses of this machine's own interfaces, nowhere else.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;

/// What the requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    /// The value of the `host` header.
    pub authority: String,
    pub path: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    #[error("not a URL of the form http://ADDRESS:PORT/PATH: {0}")]
    Malformed(String),
    #[error("only http:// is spoken, not {0}")]
    Scheme(String),
    #[error("the host must be an IP address or `localhost`, not {0} (no name is looked up)")]
    Name(String),
    #[error("{0} is neither loopback nor an address of this machine's own interfaces")]
    Foreign(IpAddr),
}

impl Target {
    /// Reads a URL and refuses every host that is not on this machine.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError::Malformed(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(scheme) => return Err(TargetError::Scheme(scheme.to_owned())),
            None => return Err(malformed()),
        }
        let authority = uri.authority().ok_or_else(malformed)?;
        let ip = parse_host(authority.host())?;
        if !ip.is_loopback() && !own_addresses().contains(&ip) {
            return Err(TargetError::Foreign(ip));
        }
        Ok(Target {
            address: SocketAddr::new(ip, authority.port_u16().unwrap_or(80)),
            authority: authority.as_str().to_owned(),
            path: uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), |path| path.as_str().to_owned()),
        })
    }
}

fn parse_host(host: &str) -> Result<IpAddr, TargetError> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        // `::ffff:192.0.2.1` is that IPv4 address, and is judged as such.
        .map(|ip| ip.to_canonical())
        .map_err(|_| TargetError::Name(host.to_owned()))
}

/// The addresses of the interfaces in every network namespace of this machine that this user can see.
///
/// `/proc/PID/net` shows the namespace of that process: a server in a namespace with a delayed link
/// has an address that is not in this process' own namespace.
fn own_addresses() -> HashSet<IpAddr> {
    let mut namespaces = HashSet::new();
    let mut addresses = HashSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let Ok(namespace) = fs::read_link(process.join("ns/net")) else {
            continue;
        };
        if namespaces.insert(namespace) {
            let read = |file| fs::read_to_string(process.join(file)).unwrap_or_default();
            addresses.extend(local_ipv4(&read("net/fib_trie")).map(IpAddr::from));
            addresses.extend(local_ipv6(&read("net/if_inet6")).map(IpAddr::from));
        }
    }
    addresses
}

/// A leaf of `fib_trie` is a line with the address and, below it, one with prefix length, scope and type.
fn local_ipv4(trie: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    trie.lines()
        .zip(trie.lines().skip(1))
        .filter(|(_, below)| below.trim() == "/32 host LOCAL")
        .filter_map(|(leaf, _)| leaf.trim().strip_prefix("|-- ")?.parse().ok())
}

/// The first column of `if_inet6` is the address in 32 hexadecimal digits.
fn local_ipv6(table: &str) -> impl Iterator<Item = Ipv6Addr> + '_ {
    table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_taken() {
        for (url, address) in [
            ("http://127.0.0.1:4000/a?b=c", "127.0.0.1:4000"),
            ("http://127.9.8.7", "127.9.8.7:80"),
            ("http://localhost:1/", "127.0.0.1:1"),
            ("http://[::1]:4000/", "[::1]:4000"),
            ("http://[::ffff:127.0.0.1]:4000/", "127.0.0.1:4000"),
        ] {
            assert_eq!(
                Target::parse(url).unwrap().address,
                address.parse().unwrap()
            );
        }
        let target = Target::parse("http://127.0.0.1:4000/a?b=c").unwrap();
        assert_eq!(
            (target.path.as_str(), target.authority.as_str()),
            ("/a?b=c", "127.0.0.1:4000")
        );
    }

    #[test]
    fn everything_else_is_refused() {
        for url in [
            "http://192.0.2.77/",
            "http://8.8.8.8:80/",
            "http://[2001:db8::1]/",
            "http://[::ffff:8.8.8.8]/",
            "http://0.0.0.0:4000/",
            "http://255.255.255.255/",
        ] {
            assert!(
                matches!(Target::parse(url), Err(TargetError::Foreign(_))),
                "{url}"
            );
        }
        assert!(matches!(
            Target::parse("http://example.org/"),
            Err(TargetError::Name(_))
        ));
        assert!(matches!(
            Target::parse("https://127.0.0.1/"),
            Err(TargetError::Scheme(_))
        ));
        assert!(matches!(
            Target::parse("127.0.0.1:80"),
            Err(TargetError::Malformed(_))
        ));
    }

    #[test]
    fn addresses_of_own_interfaces_are_read_from_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.9.0.0\n        /24 link UNICAST\n     |-- 10.9.0.1\n        /32 host LOCAL\n     |-- 10.9.0.255\n        /32 link BROADCAST\n";
        assert_eq!(
            local_ipv4(trie).collect::<Vec<_>>(),
            [Ipv4Addr::new(10, 9, 0, 1)]
        );
        let table = "fd000000000000000000000000000002 04 40 00 82     eth0\n";
        assert_eq!(
            local_ipv6(table).collect::<Vec<_>>(),
            ["fd00::2".parse::<Ipv6Addr>().unwrap()]
        );
    }
}
