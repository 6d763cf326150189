//! Collects the values of all flags from the command line, the environment and the configuration file.
//!
//! Precedence: a flag beats `CONCLAVE_…`, which beats `ETCD_…`, which beats the default. A configuration file
//! stands alone, as in etcd: what flags and variables say beside it is ignored, and that is said.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, Scalar, Yaml};

use super::error::ConfigError;
use super::flags::{self, Flag, Kind};

/// Where a value came from: the subject of a message about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(String),
    /// A key of the configuration file.
    File(String),
    /// Nobody set it.
    Default(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::File(key) => write!(f, "configuration file key {key}"),
            Self::Default(name) => write!(f, "default of --{name}"),
        }
    }
}

/// What the command line asked for.
#[derive(Debug)]
pub(super) enum Line {
    /// Run a node.
    Serve(Settings),
    /// Print the help text.
    Help,
    /// Print the version.
    Version,
}

/// The values set by somebody, by flag name, and what is to be said about them.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<&'static str, (String, Source)>,
    pub(super) notices: Vec<String>,
}

impl Settings {
    /// A flag's value and where it came from.
    ///
    /// # Panics
    /// If the table has no such flag: the callers name flags as literals.
    pub(super) fn value(&self, name: &'static str) -> (&str, Source) {
        if let Some((value, source)) = self.values.get(name) {
            return (value, source.clone());
        }
        let flag = flags::find(name).expect("the flag is in the table");
        (flag.default, Source::Default(flag.name))
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn set(&mut self, flag: &'static Flag, value: String, source: Source) -> Result<(), ConfigError> {
        if !flag.kind.accepts(&value) {
            let expected = match flag.kind {
                Kind::Text => "a text",
                Kind::Bool => "expected true or false",
                Kind::Number => "expected a whole number that is not negative",
                Kind::Duration => "expected a duration such as 5s, 100ms or 1h30m",
            };
            return Err(ConfigError::InvalidValue { origin: source, value, expected: expected.to_owned() });
        }
        if let Some(needs) = flag.refuses(&value) {
            return Err(ConfigError::NotServed { origin: source, needs });
        }
        self.values.insert(flag.name, (value, source));
        Ok(())
    }
}

/// Reads command line (without the program's name), environment and, where one is named, configuration file.
pub(super) fn collect(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Line, ConfigError> {
    let mut settings = Settings::default();
    if let Some(line) = read_arguments(arguments, &mut settings)? {
        return Ok(line);
    }
    // A file that the command line names makes the environment irrelevant, so its mistakes are not errors then.
    if !settings.is_set("config-file") {
        read_environment(environment, &mut settings)?;
    }
    let file = PathBuf::from(settings.value("config-file").0);
    if file.as_os_str().is_empty() {
        return Ok(Line::Serve(settings));
    }
    let mut from_file = Settings::default();
    from_file.notices.push(format!(
        "loaded the configuration file {}; other flags and environment variables are ignored",
        file.display()
    ));
    read_file(&file, &mut from_file)?;
    Ok(Line::Serve(from_file))
}

fn read_arguments(
    arguments: impl IntoIterator<Item = OsString>,
    settings: &mut Settings,
) -> Result<Option<Line>, ConfigError> {
    let mut arguments = arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        let Some(body) = argument.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest)) else {
            return Err(match argument.as_str() {
                "gateway" | "grpc-proxy" => ConfigError::Command(argument),
                _ => ConfigError::NotAFlag(argument),
            });
        };
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(ConfigError::NotAFlag(argument));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        match name {
            "help" | "h" => return Ok(Some(Line::Help)),
            "version" => return Ok(Some(Line::Version)),
            _ => {}
        }
        let flag = flags::find(name).ok_or_else(|| ConfigError::UnknownFlag {
            name: name.to_owned(),
            nearest: flags::nearest(name),
        })?;
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => arguments.next().ok_or(ConfigError::MissingValue(flag.name))?,
        };
        settings.set(flag, value, Source::Flag(flag.name))?;
    }
    Ok(None)
}

fn read_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    settings: &mut Settings,
) -> Result<(), ConfigError> {
    let mut variables = BTreeMap::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("ETCD_") || name.starts_with("CONCLAVE_") {
            let value = value.into_string().map_err(|_| ConfigError::NotUnicode(name.to_owned()))?;
            variables.insert(name.to_owned(), value);
        }
    }
    for flag in flags::FLAGS {
        let (own, etcd) = (flag.variable("CONCLAVE_"), flag.variable("ETCD_"));
        let (own_value, etcd_value) = (variables.remove(&own), variables.remove(&etcd));
        let (name, value) = match (own_value, etcd_value) {
            (Some(value), other) => {
                if other.is_some() {
                    settings.notices.push(format!("both {own} and {etcd} are set: {own} wins"));
                }
                (own, value)
            }
            (None, Some(value)) => (etcd, value),
            (None, None) => continue,
        };
        // An empty variable is an unset one, as in etcd.
        if value.is_empty() {
            continue;
        }
        if settings.is_set(flag.name) {
            settings.notices.push(format!("{name} is ignored: the flag --{} is given", flag.name));
            continue;
        }
        settings.set(flag, value, Source::Variable(name))?;
    }
    for name in variables.into_keys() {
        settings.notices.push(format!("unrecognized environment variable {name}"));
    }
    Ok(())
}

/// The keys below etcd's two sections for TLS, and the flags they stand for.
const SECTION_KEYS: &[(&str, &str, &str)] = &[
    ("cert-file", "cert-file", "peer-cert-file"),
    ("key-file", "key-file", "peer-key-file"),
    ("client-cert-file", "client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "auto-tls", "peer-auto-tls"),
    ("allowed-cn", "client-cert-allowed-hostname", "peer-cert-allowed-cn"),
    ("allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    ("skip-client-san-verification", "", "peer-skip-client-san-verification"),
];

fn read_file(path: &Path, settings: &mut Settings) -> Result<(), ConfigError> {
    let malformed = |reason: String| ConfigError::FileForm { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    let documents = Yaml::load_from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let document = match documents.as_slice() {
        [] => return Ok(()),
        [document] => document,
        _ => return Err(malformed("it holds more than one document".to_owned())),
    };
    if document.is_null() {
        return Ok(());
    }
    let entries =
        document.as_mapping().ok_or_else(|| malformed("it is not a mapping of settings".to_owned()))?;
    for (key, value) in entries {
        let key = key.as_str().ok_or_else(|| malformed("a key is not a text".to_owned()))?;
        let peer = match key {
            "client-transport-security" => false,
            "peer-transport-security" => true,
            _ => {
                match flags::find(key) {
                    Some(flag) => set_from_file(settings, flag, key.to_owned(), value, &malformed)?,
                    None => settings.notices.push(format!("unrecognized configuration file key {key}")),
                }
                continue;
            }
        };
        let section = value.as_mapping().ok_or_else(|| malformed(format!("{key} is not a mapping")))?;
        for (inner, value) in section {
            let inner = inner.as_str().unwrap_or_default();
            let known = SECTION_KEYS.iter().find(|(name, ..)| *name == inner);
            let flag =
                known.and_then(|(_, client, of_peer)| flags::find(if peer { of_peer } else { client }));
            let full = format!("{key}.{inner}");
            match flag {
                Some(flag) => set_from_file(settings, flag, full, value, &malformed)?,
                None => settings.notices.push(format!("unrecognized configuration file key {full}")),
            }
        }
    }
    Ok(())
}

fn set_from_file(
    settings: &mut Settings,
    flag: &'static Flag,
    key: String,
    value: &Yaml<'_>,
    malformed: &impl Fn(String) -> ConfigError,
) -> Result<(), ConfigError> {
    let text =
        scalars(value).ok_or_else(|| malformed(format!("{key} is neither a value nor a list of values")))?;
    // Go reads a bare number as nanoseconds where a duration is meant.
    let text = match (flag.kind, value) {
        (Kind::Duration, Yaml::Value(Scalar::Integer(nanos))) => format!("{nanos}ns"),
        _ => text,
    };
    // A key without a value leaves the default, as in etcd.
    if text.is_empty() {
        return Ok(());
    }
    settings.set(flag, text, Source::File(key))
}

/// A scalar as text, or a list of them joined by commas.
fn scalars(value: &Yaml<'_>) -> Option<String> {
    match value {
        Yaml::Value(Scalar::Null) => Some(String::new()),
        Yaml::Value(Scalar::Boolean(value)) => Some(value.to_string()),
        Yaml::Value(Scalar::Integer(value)) => Some(value.to_string()),
        Yaml::Value(Scalar::FloatingPoint(value)) => Some(value.to_string()),
        Yaml::Value(Scalar::String(value)) => Some(value.clone().into_owned()),
        Yaml::Sequence(values) => Some(values.iter().map(scalars).collect::<Option<Vec<_>>>()?.join(",")),
        _ => None,
    }
}
