//! How a client is set up.

use std::time::Duration;

use tonic::transport::Endpoint;

use crate::error::ConfigError;

/// HTTP/2 pings are this far apart while something is under way. etcd ends connections that ping more often than every five seconds, or
/// while nothing is.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// A connection on which a ping is not answered for so long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Whether servers apply a modifying request once that names itself, however often it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestIds {
    /// Ask, once, before the first modifying request: costs one more round trip there.
    #[default]
    Detect,
    /// They do, as Conclave does.
    Honoured,
    /// They do not, as etcd does not: a request whose outcome is unknown is never sent again.
    Ignored,
}

/// How a client is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The servers' addresses, `http://host:port` or `host:port`. At least one. All of one cluster.
    pub endpoints: Vec<String>,
    /// How long a request may take with all its attempts. Default 10 s. See [`Client::with_timeout`](crate::Client::with_timeout).
    pub request_timeout: Duration,
    /// How long one attempt may take before another endpoint is asked, where the request can be repeated. Default 3 s.
    pub attempt_timeout: Duration,
    /// How long a connection may take to be made. Default 1 s.
    pub connect_timeout: Duration,
    /// The shortest pause after an endpoint failed. Default 20 ms.
    pub backoff_min: Duration,
    /// The longest. Default 2 s.
    pub backoff_max: Duration,
    /// The largest answer that is taken, in bytes; a larger one is an error of that request. Default 64 MiB.
    pub answer_bytes_max: usize,
    /// Whether servers know requests that name themselves.
    pub request_ids: RequestIds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            request_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            answer_bytes_max: 64 << 20,
            request_ids: RequestIds::Detect,
        }
    }
}

impl Config {
    /// With these endpoints, and the defaults.
    #[must_use]
    pub fn of<I: IntoIterator<Item: Into<String>>>(endpoints: I) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The endpoints as tonic takes them. This is where a connection's security is decided.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, ConfigError> {
        for (time, name) in [
            (self.request_timeout, "request_timeout"),
            (self.attempt_timeout, "attempt_timeout"),
            (self.connect_timeout, "connect_timeout"),
            (self.backoff_min, "backoff_min"),
        ] {
            if time.is_zero() {
                return Err(ConfigError::Zero(name));
            }
        }
        if self.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoints);
        }
        self.endpoints.iter().map(|text| self.endpoint(text)).collect()
    }

    fn endpoint(&self, text: &str) -> Result<Endpoint, ConfigError> {
        if text.starts_with("https://") {
            return Err(ConfigError::Tls(text.to_owned()));
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let wrong = || ConfigError::Endpoint(text.to_owned());
        let endpoint = Endpoint::from_shared(url).map_err(|_| wrong())?;
        if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().port_u16().is_none() {
            return Err(wrong());
        }
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(endpoint: &str) -> ConfigError {
        Config::of([endpoint]).endpoints().map(|_| ()).unwrap_err()
    }

    #[test]
    fn endpoints_are_addresses_with_or_without_a_scheme() {
        let endpoints = Config::of(["127.0.0.1:2379", "http://db.example:22379"]).endpoints().unwrap();
        let uris: Vec<String> = endpoints.iter().map(|endpoint| endpoint.uri().to_string()).collect();
        assert_eq!(uris, ["http://127.0.0.1:2379/", "http://db.example:22379/"]);
    }

    #[test]
    fn configurations_that_are_refused() {
        assert_eq!(Config::default().endpoints().map(|_| ()), Err(ConfigError::NoEndpoints));
        for text in ["", "db.example", "unix:///socket", "http://", "a b:1"] {
            assert_eq!(refusal(text), ConfigError::Endpoint(text.to_owned()), "{text:?}");
        }
        assert_eq!(
            refusal("https://db.example:2379"),
            ConfigError::Tls("https://db.example:2379".to_owned())
        );
        let config = Config { attempt_timeout: Duration::ZERO, ..Config::of(["127.0.0.1:2379"]) };
        assert_eq!(config.endpoints().map(|_| ()), Err(ConfigError::Zero("attempt_timeout")));
    }
}
