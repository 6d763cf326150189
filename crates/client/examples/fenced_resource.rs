//! A protected resource that refuses stale tokens.
//!
//! A lock alone protects nothing outside the store: a holder can stand still, lose the lock without noticing, and go on to write. So each write
//! carries the holder's token, and the resource refuses one lower than it has seen. It needs no clock, and nothing of the lock but that number.
//!
//! `cargo run -p conclave-client --example fenced_resource [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{error::Error, sync::Mutex as StdMutex, time::Duration};

use conclave_client::{Client, Config, GuardError, Mutex, Put, Token, Txn};

/// A file, a device, a service of somebody else's: whatever keeps one number beside what it protects.
#[derive(Default)]
struct Resource {
    state: StdMutex<(Option<Token>, Vec<String>)>,
}

impl Resource {
    /// Writes, unless a later holder has written.
    fn write(&self, token: Token, line: &str) -> Result<(), Stale> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (highest, lines) = &mut *state;
        if highest.is_some_and(|highest| token < highest) {
            return Err(Stale { token, highest: *highest });
        }
        *highest = Some(token);
        lines.push(line.to_owned());
        Ok(())
    }
}

/// The token of a holder whose time is over.
#[derive(Debug)]
struct Stale {
    token: Token,
    highest: Option<Token>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let resource = Resource::default();
    let mutex = Mutex::new(&client, "ledger").ttl(Duration::from_secs(5));

    let first = mutex.lock().await?;
    let token = first.token();
    resource.write(token, "written by the first").map_err(|stale| format!("{stale:?}"))?;

    // The first holder stands still for longer than its lease, as in a long pause of its machine. Here the lease is revoked instead.
    client.revoke(first.lease()).await?;
    let second = mutex.lock().await?;
    resource.write(second.token(), "written by the second").map_err(|stale| format!("{stale:?}"))?;

    // The first wakes and goes on where it was.
    match resource.write(token, "written too late") {
        Err(Stale { token, highest }) => println!("token {token} is refused: {highest:?} was seen"),
        Ok(()) => return Err("a stale token was taken".into()),
    }
    // In the store itself no token is needed: the transaction knows.
    match first.txn(Txn::new().then(Put::new("ledger/line", "written too late"))).await {
        Err(GuardError::Lost(loss)) => println!("and so is its transaction: {loss}"),
        other => return Err(format!("a stale holder wrote: {other:?}").into()),
    }
    second.unlock().await?;
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
