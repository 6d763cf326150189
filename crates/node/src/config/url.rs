//! Listen and advertised addresses in the form etcd's flags give them: `http://host:port`, no path.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

/// An address of a member: `http://host:port`.
///
/// Orders by host, then port, so that a list of addresses has one canonical order on every member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    host: String,
    port: u16,
}

/// Why a text is not an address that this server serves.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// The scheme asks for TLS.
    #[error("{0:?} asks for TLS, which conclave does not serve yet: use http")]
    Tls(String),
    /// The scheme asks for a unix socket.
    #[error("{0:?} asks for a unix socket, which conclave does not serve yet: use http")]
    Unix(String),
    /// The scheme is none of etcd's.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    /// Host or port is missing or malformed.
    #[error("URL address does not have the form \"host:port\": {0}")]
    HostPort(String),
    /// Something follows the port.
    #[error("URL must not contain a path: {0}")]
    Path(String),
    /// A list without any address.
    #[error("no valid URLs given")]
    Empty,
    /// A listen address with a domain name: binding needs an IP or `localhost`.
    #[error("expected IP in URL for binding ({0})")]
    NotAnIp(String),
}

impl Url {
    /// An address from its parts. IPv6 hosts are given without brackets.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Parses one address.
    ///
    /// # Errors
    /// Anything but `http://host:port` with an optional trailing slash.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UrlError::Scheme(text.to_owned()));
        };
        match scheme {
            "http" => {}
            "https" => return Err(UrlError::Tls(text.to_owned())),
            "unix" | "unixs" => return Err(UrlError::Unix(text.to_owned())),
            _ => return Err(UrlError::Scheme(text.to_owned())),
        }
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !matches!(path, "" | "/") {
            return Err(UrlError::Path(text.to_owned()));
        }
        let malformed = || UrlError::HostPort(text.to_owned());
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(malformed)?,
            None if host.contains([':', '@', ' ']) => return Err(malformed()),
            None => host,
        };
        if !port.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(malformed());
        }
        let port = port.parse().map_err(|_| malformed())?;
        if host.is_empty() {
            return Err(malformed());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Parses a comma-separated list; sorted, without repetitions.
    ///
    /// # Errors
    /// The first address that does not parse, or an empty list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, UrlError> {
        let mut urls = text
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Err(UrlError::Empty);
        }
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    /// Host name or IP, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address to listen on. `localhost` is 127.0.0.1, as Go's listener takes it.
    ///
    /// # Errors
    /// A domain name: it could move to another machine's address.
    pub fn bind_address(&self) -> Result<SocketAddr, UrlError> {
        if self.host == "localhost" {
            return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port));
        }
        let ip: IpAddr = self.host.parse().map_err(|_| UrlError::NotAnIp(self.to_string()))?;
        Ok(SocketAddr::new(ip, self.port))
    }

    /// `host:port`, with brackets around an IPv6 host: what a connecting side resolves.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

/// The members a cluster starts with: name → peer addresses, each list sorted.
pub type Members = BTreeMap<String, Vec<Url>>;

/// Why a text is not a list of members.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MembersError {
    /// A part is not `name=url`.
    #[error("{0:?} is not of the form name=http://host:port")]
    NotNamed(String),
    /// An address does not parse.
    #[error(transparent)]
    Url(#[from] UrlError),
}

/// Parses `name=url,name=url`; a name may come several times, once for each of its addresses.
///
/// # Errors
/// A part without a name or with an address that does not parse.
pub fn parse_members(text: &str) -> Result<Members, MembersError> {
    let mut members = Members::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').ok_or_else(|| MembersError::NotNamed(part.to_owned()))?;
        if name.is_empty() {
            return Err(MembersError::NotNamed(part.to_owned()));
        }
        members.entry(name.to_owned()).or_default().push(Url::parse(url)?);
    }
    for urls in members.values_mut() {
        urls.sort();
    }
    Ok(members)
}

/// A comma-separated list for messages and logs.
#[must_use]
pub fn join(urls: &[Url]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_parse() {
        for (text, shown) in [
            ("http://localhost:2379", "http://localhost:2379"),
            ("http://10.0.0.1:1/", "http://10.0.0.1:1"),
            ("http://[::1]:2379", "http://[::1]:2379"),
            (" http://a.example:80 ", "http://a.example:80"),
        ] {
            assert_eq!(Url::parse(text).map(|url| url.to_string()), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn each_malformed_address_has_its_error() {
        let errors = [
            "localhost:2379",
            "ftp://a:1",
            "https://a:1",
            "unix://a:1",
            "http://a",
            "http://:2379",
            "http://a:b",
            "http://a:+1",
            "http://a:70000",
            "http://a:1/v3",
            "http://::1:2379",
            "http://u@a:1",
        ]
        .map(|text| Url::parse(text).expect_err(text).to_string())
        .join("\n");
        expect_test::expect![[r#"
            URL scheme must be http, https, unix, or unixs: localhost:2379
            URL scheme must be http, https, unix, or unixs: ftp://a:1
            "https://a:1" asks for TLS, which conclave does not serve yet: use http
            "unix://a:1" asks for a unix socket, which conclave does not serve yet: use http
            URL address does not have the form "host:port": http://a
            URL address does not have the form "host:port": http://:2379
            URL address does not have the form "host:port": http://a:b
            URL address does not have the form "host:port": http://a:+1
            URL address does not have the form "host:port": http://a:70000
            URL must not contain a path: http://a:1/v3
            URL address does not have the form "host:port": http://::1:2379
            URL address does not have the form "host:port": http://u@a:1"#]]
        .assert_eq(&errors);
    }

    #[test]
    fn binding_needs_an_ip() {
        assert_eq!(
            Url::parse("http://localhost:1").unwrap().bind_address(),
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        );
        assert!(Url::parse("http://example.com:1").unwrap().bind_address().is_err());
    }

    #[test]
    fn members_group_by_name() {
        let members = parse_members("b=http://h:2,a=http://h:3,a=http://h:1").unwrap();
        assert_eq!(members.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(join(&members["a"]), "http://h:1,http://h:3");
        assert!(parse_members("http://h:1").is_err());
    }
}
