//! The command line: what may be asked for, and its bounds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;

/// Load client for this machine only: sends requests, classes every failure, tells inside from outside of swaps.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// http://ADDRESS:PORT/PATH; the address must be loopback or one of this machine's own
    #[arg(long)]
    pub url: String,

    /// connect, keepalive, long, stream, websocket or upload; may be repeated, each with own settings:
    /// KIND[,path=/P][,rate=R][,concurrency=N][,timeout-ms=T][,name=NAME]
    #[arg(long = "mode", default_value = "connect", value_name = "MODE")]
    pub modes: Vec<ModeSpec>,

    /// Requests per second over all modes without a rate of their own (WebSockets keep their interval);
    /// latency counts from the moment a request was due. Without it: as fast as the answers come
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// Connections or requests side by side, for each mode
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,

    /// The run ends after this many seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=7_200))]
    pub seconds: u64,

    /// The run ends after this many requests
    #[arg(long, default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub requests: u64,

    /// Longest time for one request [default: 8000; long, stream and upload: 120000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: Option<u64>,

    /// How long requests in flight may still take when the run ends
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub grace_ms: u64,

    /// Source addresses taken in turn, from 127.0.0.2 on (IPv4 loopback targets; 0: the kernel chooses)
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub source_addresses: u32,

    /// Statuses that are a success
    #[arg(long, value_delimiter = ',', default_value = "200")]
    pub expect_status: Vec<u16>,

    /// Response header that names the version which answered
    #[arg(long, default_value = "x-version")]
    pub version_header: String,

    /// Where the marks come from: `-` is stdin, else a file or fifo that is followed (stdin is then not read)
    #[arg(long, default_value = "-")]
    pub control: String,

    /// websocket: time between two messages of a connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub echo_ms: u64,

    /// websocket: the message, {id} replaced by a unique text; an answer that contains that text is the echo
    #[arg(long, default_value = "{id}")]
    pub echo_message: String,

    /// upload: size of the body
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=67_108_864))]
    pub upload_bytes: u32,

    /// upload: pieces the body is sent in
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub upload_pieces: u32,

    /// upload: time over which the pieces are spread
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    pub upload_ms: u64,

    /// Examples kept of each class of failure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub examples: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Connect,
    Keepalive,
    Long,
    Stream,
    Websocket,
    Upload,
}

/// A mode as it was written on the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeSpec {
    pub kind: Kind,
    name: Option<String>,
    path: Option<String>,
    rate: Option<f64>,
    concurrency: Option<u32>,
    timeout_ms: Option<u64>,
}

/// A mode with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Mode {
    pub kind: Kind,
    pub name: String,
    pub path: String,
    pub rate: Option<f64>,
    pub concurrency: u32,
    pub timeout: Duration,
}

impl Options {
    /// The modes with the common settings filled in; the common rate is shared out in equal parts.
    pub fn modes(&self, path: &str) -> Result<Vec<Mode>, String> {
        let shares = |spec: &&ModeSpec| spec.rate.is_none() && spec.kind != Kind::Websocket;
        let sharing = self.modes.iter().filter(shares).count().max(1);
        let mut modes: Vec<Mode> = Vec::new();
        for spec in &self.modes {
            let name = spec
                .name
                .clone()
                .unwrap_or_else(|| spec.kind.name().to_owned());
            if modes.iter().any(|mode| mode.name == name) {
                return Err(format!(
                    "two modes called {name}: give one of them another name, {},name=...",
                    spec.kind.name()
                ));
            }
            let rate = match spec.kind {
                Kind::Websocket => None,
                _ => spec.rate.or(self.rate.map(|rate| rate / sharing as f64)),
            };
            modes.push(Mode {
                kind: spec.kind,
                name,
                path: spec.path.clone().unwrap_or_else(|| path.to_owned()),
                rate,
                concurrency: spec.concurrency.unwrap_or(self.concurrency),
                timeout: Duration::from_millis(
                    spec.timeout_ms
                        .or(self.timeout_ms)
                        .unwrap_or(spec.kind.default_timeout_ms()),
                ),
            });
        }
        Ok(modes)
    }
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::Connect,
        Kind::Keepalive,
        Kind::Long,
        Kind::Stream,
        Kind::Websocket,
        Kind::Upload,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Keepalive => "keepalive",
            Kind::Long => "long",
            Kind::Stream => "stream",
            Kind::Websocket => "websocket",
            Kind::Upload => "upload",
        }
    }

    fn default_timeout_ms(self) -> u64 {
        match self {
            Kind::Connect | Kind::Keepalive | Kind::Websocket => 8_000,
            Kind::Long | Kind::Stream | Kind::Upload => 120_000,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for ModeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let word = parts.next().unwrap_or_default();
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == word)
            .ok_or_else(|| {
                format!(
                    "`{word}` is none of {}",
                    Kind::ALL.map(Kind::name).join(", ")
                )
            })?;
        let mut spec = ModeSpec {
            kind,
            name: None,
            path: None,
            rate: None,
            concurrency: None,
            timeout_ms: None,
        };
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
            match key {
                "name" => spec.name = Some(value.to_owned()),
                "path" if value.starts_with('/') => spec.path = Some(value.to_owned()),
                "path" => return Err(format!("path `{value}` does not begin with a slash")),
                "rate" => spec.rate = Some(parse_rate(value)?),
                "concurrency" => spec.concurrency = Some(parse_number(key, value, 10_000)?),
                "timeout-ms" => spec.timeout_ms = Some(parse_number(key, value, 600_000)?.into()),
                _ => return Err(format!("unknown setting `{key}`")),
            }
        }
        Ok(spec)
    }
}

fn parse_number(key: &str, value: &str, most: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| format!("{key} must be from 1 to {most}, not `{value}`"))
}

fn parse_rate(value: &str) -> Result<f64, String> {
    value
        .parse()
        .ok()
        .filter(|rate| (0.01..=200_000.0).contains(rate))
        .ok_or_else(|| format!("a rate must be from 0.01 to 200000, not `{value}`"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn modes(arguments: &[&str]) -> Result<Vec<Mode>, String> {
        let words = ["load", "--url", "http://127.0.0.1:1/"]
            .iter()
            .chain(arguments);
        Options::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .modes("/")
    }

    #[test]
    fn a_rate_is_shared_by_the_modes_without_their_own() {
        let modes = modes(&[
            "--rate",
            "1000",
            "--mode",
            "connect",
            "--mode",
            "keepalive,concurrency=50",
            "--mode",
            "long,rate=2,path=/slow?ms=5000",
            "--mode",
            "websocket,path=/ws",
        ])
        .unwrap();
        assert_eq!(
            modes.iter().map(|mode| mode.rate).collect::<Vec<_>>(),
            [Some(500.0), Some(500.0), Some(2.0), None]
        );
        assert_eq!((modes[0].concurrency, modes[1].concurrency), (16, 50));
        assert_eq!(modes[2].path, "/slow?ms=5000");
        assert_eq!(modes[2].timeout, Duration::from_secs(120));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for arguments in [
            &["--seconds", "7201"][..],
            &["--requests", "100000001"],
            &["--concurrency", "0"],
            &["--rate", "0"],
            &["--rate", "nan"],
            &["--mode", "flood"],
            &["--mode", "connect,concurrency=10001"],
            &["--mode", "connect,path=x"],
            &["--mode", "connect", "--mode", "connect"],
        ] {
            assert!(modes(arguments).is_err(), "{arguments:?}");
        }
        assert!(modes(&["--mode", "connect", "--mode", "connect,name=other"]).is_ok());
    }
}
