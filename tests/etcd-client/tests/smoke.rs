//! What an application does through etcd-client, against the cluster that the variable `ENDPOINTS` names
//! (`http://127.0.0.1:2379,…`). Each test keeps to keys of its own, so that they run side by side.

use std::env;

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, KvClient,
    LeaseGrantOptions, LeaseTimeToLiveOptions, LockOptions, ProclaimOptions, PutOptions, ResignOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};

fn endpoints() -> Vec<String> {
    let all = env::var("ENDPOINTS")
        .expect("ENDPOINTS names the cluster; `cargo xtask cluster etcd-client` sets it");
    all.split(',').map(str::to_owned).collect()
}

async fn client() -> Client {
    Client::connect(endpoints(), None).await.expect("the cluster serves")
}

async fn kv() -> KvClient {
    client().await.kv_client()
}

#[tokio::test]
async fn a_put_is_read_back_with_its_revisions() {
    let mut kv = kv().await;
    let first = kv.put("put/a", "1", None).await.unwrap().header().unwrap().revision();
    let answer = kv.put("put/a", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(answer.prev_key().unwrap().value(), b"1");
    let second = answer.header().unwrap().revision();

    let found = kv.get("put/a", None).await.unwrap();
    let pair = &found.kvs()[0];
    assert_eq!((pair.value(), pair.version()), (&b"2"[..], 2));
    assert_eq!((pair.create_revision(), pair.mod_revision()), (first, second));

    let past = kv.get("put/a", Some(GetOptions::new().with_revision(first))).await.unwrap();
    assert_eq!(past.kvs()[0].value(), b"1");
}

#[tokio::test]
async fn every_member_reads_what_another_wrote() {
    let endpoints = endpoints();
    for (i, writer) in endpoints.iter().enumerate() {
        let mut writer = Client::connect([writer], None).await.unwrap();
        writer.put("members/a", i.to_string(), None).await.unwrap();
        for reader in &endpoints {
            let mut reader = Client::connect([reader], None).await.unwrap();
            let found = reader.get("members/a", None).await.unwrap();
            assert_eq!(found.kvs()[0].value(), i.to_string().as_bytes());
        }
    }
}

#[tokio::test]
async fn ranges_are_sorted_limited_and_counted() {
    let mut kv = kv().await;
    for name in ["c", "a", "b"] {
        kv.put(format!("range/{name}"), name, None).await.unwrap();
    }
    let options =
        GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(2);
    let found = kv.get("range/", Some(options)).await.unwrap();
    let keys: Vec<&[u8]> = found.kvs().iter().map(|pair| pair.key()).collect();
    assert_eq!(keys, [b"range/c", b"range/b"]);
    assert!(found.more());
    assert_eq!(found.count(), 3);

    let counted = kv.get("range/", Some(GetOptions::new().with_prefix().with_count_only())).await.unwrap();
    assert_eq!((counted.count(), counted.kvs().len()), (3, 0));
}

#[tokio::test]
async fn a_transaction_takes_one_branch() {
    let mut kv = kv().await;
    kv.put("txn/a", "old", None).await.unwrap();
    let swap = |expected: &str| {
        Txn::new()
            .when([Compare::value("txn/a", CompareOp::Equal, expected)])
            .and_then([TxnOp::put("txn/a", "new", None), TxnOp::get("txn/a", None)])
            .or_else([TxnOp::get("txn/a", None)])
    };
    let taken = kv.txn(swap("old")).await.unwrap();
    assert!(taken.succeeded());
    let [TxnOpResponse::Put(_), TxnOpResponse::Get(seen)] = &taken.op_responses()[..] else {
        panic!("a put and a get were asked for");
    };
    assert_eq!(seen.kvs()[0].value(), b"new", "a later operation sees an earlier one");
    assert!(!kv.txn(swap("old")).await.unwrap().succeeded());
}

#[tokio::test]
async fn deletes_count_and_return_what_was() {
    let mut kv = kv().await;
    for name in ["a", "b"] {
        kv.put(format!("delete/{name}"), name, None).await.unwrap();
    }
    let gone = kv.delete("delete/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await.unwrap();
    assert_eq!((gone.deleted(), gone.prev_kvs().len()), (2, 2));
    assert!(kv.get("delete/a", None).await.unwrap().kvs().is_empty());
}

#[tokio::test]
async fn errors_have_etcds_code_and_text() {
    let mut kv = kv().await;
    let Err(Error::GRpcStatus(status)) = kv.put("", "x", None).await else {
        panic!("an empty key is refused");
    };
    assert_eq!(status.message(), "etcdserver: key is not provided");

    let Err(Error::GRpcStatus(status)) = kv.get("a", Some(GetOptions::new().with_revision(i64::MAX))).await
    else {
        panic!("a future revision is refused");
    };
    assert_eq!(status.message(), "etcdserver: mvcc: required revision is a future revision");

    let Err(Error::GRpcStatus(status)) = kv.compact(i64::MAX, Some(CompactionOptions::new())).await else {
        panic!("compacting a future revision is refused");
    };
    assert_eq!(status.message(), "etcdserver: mvcc: required revision is a future revision");
}

#[tokio::test]
async fn members_and_status_are_told() {
    let mut client = client().await;
    let members = client.member_list().await.unwrap();
    assert_eq!(members.members().len(), endpoints().len());
    let status = client.status().await.unwrap();
    assert!(members.members().iter().any(|member| member.id() == status.leader()));
    assert_eq!(status.version(), "3.7.1");
}

fn told<T>(outcome: Result<T, Error>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(Error::GRpcStatus(status)) => status.message().to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_lease_lives_by_keep_alives_and_takes_its_keys_with_it() {
    let mut client = client().await;
    let id = client.lease_grant(60, None).await.unwrap().id();
    let chosen = client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(id)));
    assert_eq!(told(chosen.await), "etcdserver: lease already exists");
    client.put("lease/a", "1", Some(PutOptions::new().with_lease(id))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await.unwrap();
    keeper.keep_alive().await.unwrap();
    let renewed = answers.message().await.unwrap().unwrap();
    assert_eq!((renewed.id(), renewed.ttl()), (id, 60));
    let left = client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert!((58..=60).contains(&left.ttl()) && left.granted_ttl() == 60 && left.keys() == [b"lease/a"]);
    assert!(client.leases().await.unwrap().leases().iter().any(|lease| lease.id() == id));
    client.lease_revoke(id).await.unwrap();
    assert!(client.get("lease/a", None).await.unwrap().kvs().is_empty());
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 0);
    assert_eq!(client.lease_time_to_live(id, None).await.unwrap().ttl(), -1);
    assert_eq!(told(client.lease_revoke(id).await), "etcdserver: requested lease not found");
    let put = client.put("lease/a", "1", Some(PutOptions::new().with_lease(id)));
    assert_eq!(told(put.await), "etcdserver: requested lease not found");
}

#[tokio::test]
async fn keep_alives_work_at_every_member() {
    let id = client().await.lease_grant(60, None).await.unwrap().id();
    for endpoint in endpoints() {
        let mut client = Client::connect([endpoint], None).await.unwrap();
        let (mut keeper, mut answers) = client.lease_keep_alive(id).await.unwrap();
        keeper.keep_alive().await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 60);
        assert_eq!(client.lease_time_to_live(id, None).await.unwrap().granted_ttl(), 60);
    }
    client().await.lease_revoke(id).await.unwrap();
}

#[tokio::test]
async fn a_lock_has_one_owner_after_the_other() {
    let mut first = client().await;
    let key = first.lock("lock", None).await.unwrap().key().to_vec();
    let mut second = client().await;
    let lease = second.lease_grant(60, None).await.unwrap().id();
    let waiting =
        tokio::spawn(async move { second.lock("lock", Some(LockOptions::new().with_lease(lease))).await });
    let queue = || GetOptions::new().with_prefix().with_count_only();
    while first.get("lock/", Some(queue())).await.unwrap().count() < 2 {}
    assert!(!waiting.is_finished());
    first.unlock(key).await.unwrap();
    let owned = waiting.await.unwrap().unwrap();
    assert_eq!(owned.key(), format!("lock/{lease:x}").as_bytes());
    first.unlock(owned.key()).await.unwrap();
    assert_eq!(first.get("lock/", Some(queue())).await.unwrap().count(), 0);
}

#[tokio::test]
async fn an_election_has_one_leader_after_the_other() {
    let mut client = client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let won = client.campaign("election", "one", lease).await.unwrap();
    let leader = won.leader().unwrap().clone();
    let mut seen = client.observe("election").await.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv().unwrap().value(), b"one");
    client.proclaim("uno", Some(ProclaimOptions::new().with_leader(leader.clone()))).await.unwrap();
    assert_eq!(seen.message().await.unwrap().unwrap().kv().unwrap().value(), b"uno");
    assert_eq!(client.leader("election").await.unwrap().kv().unwrap().value(), b"uno");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await.unwrap();
    assert_eq!(told(client.leader("election").await), "election: no leader");
}

/// The events of a watch stream, as kind, key, value and value before, until there are `count`.
async fn events(stream: &mut WatchStream, count: usize) -> Vec<(EventType, String, String, Option<String>)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let response = stream.message().await.unwrap().expect("the stream goes on");
        seen.extend(response.events().iter().map(|event| {
            let kv = event.kv().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let before = event.prev_kv().map(|kv| text(kv.value()));
            (event.event_type(), text(kv.key()), text(kv.value()), before)
        }));
    }
    seen
}

#[tokio::test]
async fn a_watch_shows_history_and_what_comes() {
    let mut client = client().await;
    let first = client.put("watch/a", "1", None).await.unwrap().header().unwrap().revision();
    let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(first);
    let mut stream = client.watch("watch/", Some(options)).await.unwrap();
    client.put("watch/a", "2", None).await.unwrap();
    client.delete("watch/a", None).await.unwrap();
    let text = |text: &str| text.to_owned();
    let expected = [
        (EventType::Put, text("watch/a"), text("1"), None),
        (EventType::Put, text("watch/a"), text("2"), Some(text("1"))),
        (EventType::Delete, text("watch/a"), text(""), Some(text("2"))),
    ];
    assert_eq!(events(&mut stream, 3).await, expected);
}

#[tokio::test]
async fn filters_leave_out_what_is_not_wanted() {
    let mut client = client().await;
    let options = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    let mut stream = client.watch("filtered", Some(options)).await.unwrap();
    client.put("filtered", "1", None).await.unwrap();
    client.delete("filtered", None).await.unwrap();
    assert_eq!(events(&mut stream, 1).await[0].0, EventType::Delete);
}

#[tokio::test]
async fn watches_share_a_stream_and_are_canceled_one_by_one() {
    let mut client = client().await;
    let mut stream = client.watch("shared/a", None).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert!(first.created());
    stream.watch("shared/b", Some(WatchOptions::new().with_watch_id(40))).await.unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert!(second.created() && second.watch_id() == 40);
    stream.cancel(first.watch_id()).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().canceled());
    client.put("shared/a", "1", None).await.unwrap();
    client.put("shared/b", "1", None).await.unwrap();
    assert_eq!(events(&mut stream, 1).await[0].1, "shared/b");
}

#[tokio::test]
async fn progress_is_told_when_it_is_asked_for() {
    let mut client = client().await;
    let mut stream = client.watch("progress", None).await.unwrap();
    let revision = client.put("other", "1", None).await.unwrap().header().unwrap().revision();
    stream.request_progress().await.unwrap();
    let told = loop {
        let response = stream.message().await.unwrap().unwrap();
        if !response.created() {
            break response;
        }
    };
    assert!(told.watch_id() == -1 && told.events().is_empty());
    // The member that answers may not have applied the put, if another did it.
    assert!(told.header().unwrap().revision() > 0 && revision > 0);
}
