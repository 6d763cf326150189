//! Reads that meet the installation of a snapshot: they see the old store or the new one, never a part of each.

use std::{
    ops::Bound,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use conclave_api::etcdserverpb::{HashKvResponse, RangeRequest};
use conclave_kv::{KvError, Machine, Reader};
use conclave_storage::{Checkpoint, Scan, StateBuilder, StateError, StateStore, StateView};

use crate::harness::{Replica, range};

type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// A store that stops for a hook at the two places where a reader could be caught in between.
#[derive(Default)]
struct Hooks {
    /// Once the engine has switched, before anybody else knows.
    switched: Hook,
    /// Before a value is looked up.
    getting: Hook,
}

struct Hooked {
    inner: Arc<dyn StateStore>,
    hooks: Arc<Hooks>,
}

fn call(hook: &Hook) {
    let hook = hook.lock().unwrap().take();
    if let Some(hook) = hook {
        hook();
    }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl StateStore for Hooked {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.inner.checkpoint()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        call(&self.hooks.getting);
        self.inner.get(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'static> {
        self.inner.scan(from, to, reverse)
    }

    fn ingest(
        &self,
        checkpoint: Checkpoint,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError> {
        self.inner.ingest(checkpoint, run)
    }

    fn view(&self) -> Arc<dyn StateView> {
        self.inner.view()
    }

    fn built(&self, generation: u64) -> Result<Arc<dyn StateView>, StateError> {
        self.inner.built(generation)
    }

    fn build(&self, generation: u64) -> Result<Box<dyn StateBuilder>, StateError> {
        self.inner.build(generation)
    }

    fn switch(&self, generation: u64) -> Result<(), StateError> {
        self.inner.switch(generation)?;
        call(&self.hooks.switched);
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
}

/// A replica that is behind, none of whose values is in memory, and one whose checkpoint has removed what the other holds.
fn behind_and_ahead() -> (Replica, Arc<Hooks>, Replica) {
    let mut behind = Replica::with_cache(0);
    let hooks = Arc::new(Hooks::default());
    behind.store = Arc::new(Hooked { inner: behind.store.clone(), hooks: hooks.clone() });
    (behind.machine, behind.reader) = Machine::open(behind.store.clone(), behind.options.clone()).unwrap();
    behind.set("a", "old 2");
    behind.set("a", "old 3");
    behind.set("b", "old 4");
    let mut ahead = Replica::with_cache(0);
    ahead.follow(&behind.log);
    behind.checkpoint();
    behind.set("c", "old 5");
    assert_eq!(behind.reader.stats().cached_value_bytes, 0);
    ahead.set("c", "old 5");
    for value in ["new 6", "new 7", "new 8"] {
        ahead.set("a", value);
    }
    ahead.set("b", "new 9");
    ahead.compact(9).unwrap();
    for _ in 0..3 {
        ahead.checkpoint();
    }
    (behind, hooks, ahead)
}

#[derive(Debug, PartialEq)]
struct Answers {
    past: Result<Vec<Bytes>, String>,
    past_range: Result<Vec<Bytes>, String>,
    present: Result<Vec<Bytes>, String>,
    hash: Result<HashKvResponse, String>,
}

fn ask(reader: &Reader) -> Answers {
    let text = |error: KvError| error.to_string();
    let values = |request: RangeRequest| {
        let response = reader.range(&request).map_err(text)?;
        Ok(response.kvs.into_iter().map(|kv| kv.value).collect())
    };
    Answers {
        past: values(RangeRequest { revision: 2, ..range("a", "") }),
        past_range: values(RangeRequest { revision: 4, ..range("a", "z") }),
        present: values(range("a", "c")),
        hash: reader.hash_kv(4).map_err(text),
    }
}

#[test]
fn a_reader_sees_the_old_store_or_the_new_one_while_a_snapshot_is_installed() {
    let (mut behind, hooks, ahead) = behind_and_ahead();
    let before = ask(&behind.reader);
    assert_eq!(before.past, Ok(vec![Bytes::from("old 2")]));
    let (begin, begun) = mpsc::channel::<()>();
    let (answer, answers) = mpsc::channel();
    let reader = behind.reader.clone();
    let asking = thread::spawn(move || {
        begun.recv().unwrap();
        answer.send(ask(&reader)).unwrap();
    });
    let (seen, answered) = mpsc::channel();
    *hooks.switched.lock().unwrap() = Some(Box::new(move || {
        begin.send(()).unwrap();
        // Whoever has to wait for the installation cannot answer before it goes on.
        let early = answers.recv_timeout(Duration::from_millis(100));
        seen.send((early.ok(), answers)).unwrap();
    }));
    behind.install_from(&ahead, 1000);
    let (early, answers) = answered.recv().unwrap();
    let during = early.unwrap_or_else(|| answers.recv().unwrap());
    asking.join().unwrap();
    let after = ask(&behind.reader);
    assert_eq!(after, ask(&ahead.reader));
    assert_ne!(before, after);
    assert!(during == before || during == after, "{during:?}");
}

#[test]
fn a_read_that_finds_the_engine_replaced_begins_again() {
    let (mut behind, hooks, ahead) = behind_and_ahead();
    let (reach, reached) = mpsc::channel::<()>();
    let (go_on, gone_on) = mpsc::channel::<()>();
    *hooks.getting.lock().unwrap() = Some(Box::new(move || {
        reach.send(()).unwrap();
        gone_on.recv().unwrap();
    }));
    let reader = behind.reader.clone();
    let asking = thread::spawn(move || reader.range(&range("a", "")).unwrap());
    reached.recv().unwrap();
    behind.install_from(&ahead, 1000);
    go_on.send(()).unwrap();
    assert_eq!(asking.join().unwrap().kvs[0].value, "new 8");
}
