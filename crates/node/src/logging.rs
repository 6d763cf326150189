//! Logs in etcd's form: one JSON object a line with `level`, `ts`, `caller`, `msg` and the event's own fields.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets as Filter};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};

/// Why logs cannot be written as configured.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// A log file cannot be opened.
    #[error("cannot open the log file {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process has a subscriber already.
    #[error("logging is set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Sends what the process logs to the configured targets. Once a process; programs that embed a node keep their
/// own subscriber and do not call this.
///
/// # Errors
/// A log file that cannot be opened; a subscriber that was there before.
pub fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let targets = config.outputs.iter().map(Target::open).collect::<Result<Vec<_>, _>>()?;
    let level = match config.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let layer = Lines { format: config.format, targets };
    // The HTTP library tells of each frame when asked to debug, and drowns what this program has to say.
    let http = level.min(LevelFilter::INFO);
    let filter =
        Filter::new().with_default(level).with_targets([("h2", http), ("hyper", http), ("hyper_util", http)]);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    Ok(())
}

#[derive(Debug)]
enum Target {
    Stderr,
    Stdout,
    File(File),
}

impl Target {
    fn open(output: &LogOutput) -> Result<Self, LoggingError> {
        match output {
            LogOutput::Stderr => Ok(Self::Stderr),
            LogOutput::Stdout => Ok(Self::Stdout),
            LogOutput::File(path) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map(Self::File)
                .map_err(|source| LoggingError::Open { path: path.clone(), source }),
        }
    }

    /// One call a line, so that lines of several threads never mix. A line that cannot be written is lost: a
    /// node does not stop because nobody can read why.
    fn write(&self, line: &[u8]) {
        let _ = match self {
            Self::Stderr => io::stderr().lock().write_all(line),
            Self::Stdout => io::stdout().lock().write_all(line),
            Self::File(file) => (&mut &*file).write_all(line),
        };
    }
}

#[derive(Debug)]
struct Lines {
    format: LogFormat,
    targets: Vec<Target>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = timestamp(now.as_secs(), now.subsec_micros());
        let line = line(self.format, &timestamp, event);
        for target in &self.targets {
            target.write(line.as_bytes());
        }
    }
}

fn line(format: LogFormat, timestamp: &str, event: &Event<'_>) -> String {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = match *metadata.level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    };
    let mut line = String::with_capacity(160);
    match format {
        LogFormat::Json => {
            line.push('{');
            member(&mut line, "level", &level.into());
            member(&mut line, "ts", &timestamp.into());
            member(&mut line, "caller", &caller(metadata).into());
            member(&mut line, "msg", &fields.message.into());
            for (name, value) in &fields.rest {
                member(&mut line, name, value);
            }
            line.push('}');
        }
        LogFormat::Console => {
            let _ = write!(line, "{timestamp}\t{level}\t{}\t{}", caller(metadata), fields.message);
            if !fields.rest.is_empty() {
                let _ = write!(line, "\t{}", Value::Object(fields.rest));
            }
        }
    }
    line.push('\n');
    line
}

fn member(line: &mut String, name: &str, value: &Value) {
    if !line.ends_with('{') {
        line.push(',');
    }
    let _ = write!(line, "{}:{value}", Value::from(name));
}

/// `node/front.rs:42`: crate and file, as etcd names package and file.
fn caller(metadata: &Metadata<'_>) -> String {
    let package = metadata.target().split("::").next().unwrap_or_default();
    let package = package.strip_prefix("conclave_").unwrap_or(package);
    let file = metadata.file().unwrap_or_default();
    let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
    format!("{package}/{file}:{}", metadata.line().unwrap_or_default())
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
        } else {
            // Go's names have dashes where Rust's have underscores.
            self.rest.insert(field.name().replace('_', "-"), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, with_causes(value).into());
    }
}

/// An error and what caused it, in one line. Some messages hold their cause already, for those who print no more than the message.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// RFC 3339 in UTC with microseconds.
fn timestamp(seconds: u64, micros: u32) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The date of a day counted from 1970-01-01, by eras of 400 years that begin on the first of March, so that
/// the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(951_782_399, 1), "2000-02-28T23:59:59.000001Z");
        assert_eq!(timestamp(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(timestamp(1_795_437_000, 999_999), "2026-11-23T12:30:00.999999Z");
        assert_eq!(timestamp(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        enum Outer {
            #[error("no port: {source}")]
            Told { source: io::Error },
            #[error("no port")]
            Untold { source: io::Error },
        }
        let source = || io::Error::other("in use");
        for outer in [Outer::Told { source: source() }, Outer::Untold { source: source() }] {
            assert_eq!(with_causes(&outer), "no port: in use");
        }
    }

    #[test]
    fn a_line_of_each_format() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for format in [LogFormat::Json, LogFormat::Console] {
            let targets = vec![Target::open(&LogOutput::File(file.path().to_owned())).unwrap()];
            let subscriber =
                tracing_subscriber::registry().with(Lines { format, targets }.with_filter(LevelFilter::INFO));
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(member_id = 7u64, error = "a \"b\"", "ready to {}", "serve");
                tracing::debug!("not this");
            });
        }
        let text = std::fs::read_to_string(file.path()).unwrap();
        let mut lines = text.lines();
        let json: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(json["level"], "info");
        assert_eq!(json["msg"], "ready to serve");
        assert_eq!(json["member-id"], 7);
        assert_eq!(json["error"], "a \"b\"");
        assert!(json["caller"].as_str().unwrap().starts_with("node/logging.rs:"));
        assert!(lines.next().unwrap().contains("\tinfo\tnode/logging.rs:"));
        assert_eq!(lines.next(), None);
    }
}
