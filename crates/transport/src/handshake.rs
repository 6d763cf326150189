//! The first words on a connection: who dials whom, in which cluster, and in which version they will speak.
//!
//! ```text
//! word = magic:[u8; 8] crc:u32 length:u32 message:[u8; length]
//! ```
//! The dialer sends a word with a `Hello`, the other answers with one with an `Answer`, which either welcomes or says why not.
//! A dialer may also *enquire*: it names no receiver, and no cluster if it is yet to join one, is told who is here and in a second word whatever this node says about its
//! cluster, and hangs up. So a node that is to join finds its cluster by an address.
//!
//! Both name their data directories, and each judges the other's: a node that lost its own knows nobody, so that it is the others who must see it.
//!
//! A dialer also says where it is reached. That counts only with a receiver whom nobody told: a member that was away for long may
//! not know of its leader, and could not answer it.
//!
//! This layout is the same for all versions for ever; the messages are protobuf and gain fields. Both sides check both the cluster and the
//! node, since an address may have been given to another machine. The version is the highest that both know.

use std::{io, sync::Arc};

use bytes::{Buf, BufMut, BytesMut};
use conclave_consensus::NodeId;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    ClusterId, Lane, Stream,
    wire::{Answer, Hello},
};

/// The oldest version of the protocol that this code speaks.
pub const VERSION_MIN: u32 = 1;
/// The newest version of the protocol that this code speaks.
pub const VERSION_MAX: u32 = 2;

const MAGIC: [u8; 8] = *b"CONCLAVE";
const PREFIX_BYTES: usize = 16;
const WORD_BYTES_MAX: usize = 1024;
/// How many bytes of addresses a dialer says at most.
const ADDRESS_BYTES_MAX: usize = 512;
/// The longest answer to an enquiry.
const ABOUT_BYTES_MAX: usize = 4 << 20;

/// Why two nodes do not talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They have no version in common.
    #[error("it speaks versions {}..={} of the peer protocol, this node {}..={}", theirs.0, theirs.1, ours.0, ours.1)]
    Version {
        /// The least and the highest that this node speaks.
        ours: (u32, u32),
        /// The least and the highest that the other speaks.
        theirs: (u32, u32),
    },
    /// They are of two clusters.
    #[error("it belongs to cluster {theirs}, this node to cluster {ours}")]
    Cluster {
        /// This node's.
        ours: ClusterId,
        /// The other's.
        theirs: ClusterId,
    },
    /// The address leads to another node than the dialer meant.
    #[error("node {:x} was dialed, but node {:x} answered", wanted.0, here.0)]
    Target {
        /// Whom the dialer meant.
        wanted: NodeId,
        /// Who is there.
        here: NodeId,
    },
    /// The dialer has the id of the node it dialed.
    #[error("the dialing node has the same id as the node that answered, {:x}", _0.0)]
    SameId(NodeId),
    /// The dialer was removed from the cluster.
    #[error("node {:x} was removed from the cluster", _0.0)]
    Removed(NodeId),
    /// The node's data directory is not the one that it is known by: what it once promised is lost.
    #[error(
        "node {:x} came with another data directory than the one it is known by: its data was lost or replaced, and with it what it promised; \
         remove the member and add it again as a new one",
        _0.0
    )]
    Replaced(NodeId),
    /// A reason that only a newer version knows.
    #[error("refused for a reason unknown to this version (code {0})")]
    Other(u32),
}

impl Refusal {
    fn code(self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Cluster { .. } => 2,
            Self::Target { .. } => 3,
            Self::SameId(_) => 4,
            Self::Removed(_) => 5,
            Self::Replaced(_) => 6,
            Self::Other(code) => code,
        }
    }

    /// Names the kind, for rate limits.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::Cluster { .. } => "cluster",
            Self::Target { .. } => "target",
            Self::SameId(_) => "same id",
            Self::Removed(_) => "removed",
            Self::Replaced(_) => "replaced",
            Self::Other(_) => "other",
        }
    }
}

/// Why a connection did not come about although the stream did.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream broke.
    #[error("connection lost in the handshake: {0}")]
    Io(#[from] io::Error),
    /// What came is not a handshake.
    #[error("not a Conclave peer: {0}")]
    Foreign(&'static str),
    /// One of the two will not talk to the other.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// This node does not answer the other, see [`Doorkeeper::admits`].
    #[error("node {:x} is not answered", _0.0)]
    Unwelcome(NodeId),
}

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub versions: (u32, u32),
    pub frame_bytes_max: usize,
    pub incarnation: u64,
    /// Where the others reach it.
    pub addresses: &'a [String],
}

/// Decides whom this node talks to, beyond cluster and version.
pub trait Doorkeeper: Send + Sync + std::fmt::Debug {
    /// Whether the node has the data directory that it is known by, or its first. The first one is durably remembered when
    /// this returns: what a node promises is worth something only as long as nobody else can come under its name. Asked about whoever dials
    /// and whoever is dialed, once a connection, on a thread that may wait for a disk.
    ///
    /// # Errors
    /// If it cannot be remembered; the connection is given up, and will be tried again.
    fn recognises(&self, node: NodeId, incarnation: u64) -> io::Result<bool>;

    /// Whether a node of this cluster that dialed may be answered at all. Asked first; where it may not, the connection is closed without a word.
    fn admits(&self, _node: NodeId) -> bool {
        true
    }

    /// Whether the node is known by another data directory than this. Nothing is remembered: one who enquires has not shown of which cluster it is.
    fn knows_otherwise(&self, node: NodeId, incarnation: u64) -> bool;

    /// What is said to those who enquire, in the embedding program's encoding; at most 4 MiB.
    fn about(&self) -> bytes::Bytes;
}

/// Lets everybody in and says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenDoor;

impl Doorkeeper for OpenDoor {
    fn recognises(&self, _: NodeId, _: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn knows_otherwise(&self, _: NodeId, _: u64) -> bool {
        false
    }

    fn about(&self) -> bytes::Bytes {
        bytes::Bytes::new()
    }
}

/// Asks away from the task's thread, on which others wait.
async fn recognises(door: &Arc<dyn Doorkeeper>, node: NodeId, incarnation: u64) -> io::Result<bool> {
    let door = Arc::clone(door);
    let asked = tokio::task::spawn_blocking(move || door.recognises(node, incarnation));
    asked.await.map_err(io::Error::other)?
}

/// What came of an accepted connection's first word.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A peer, for a lane, and where it says that it is reached.
    Peer(NodeId, Lane, Vec<String>),
    /// Somebody who was told and left.
    Enquiry,
}

/// Who is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Names its data directory; zero if it does not say.
    pub incarnation: u64,
    /// What it says about the cluster.
    pub about: bytes::Bytes,
}

/// The second word to one who enquires.
#[derive(Clone, PartialEq, Message)]
struct AboutWord {
    #[prost(bytes = "bytes", tag = "1")]
    about: bytes::Bytes,
}

/// Asks who is at the other end of a dialed stream. Node and cluster of the one who asks are zero if it does not know them yet.
pub(crate) async fn enquire(
    stream: &mut dyn Stream,
    (own, cluster): (NodeId, ClusterId),
    incarnation: u64,
) -> Result<About, HandshakeError> {
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        cluster: cluster.0,
        from: own.0,
        incarnation,
        enquires: true,
        ..Hello::default()
    };
    write_word(stream, &hello).await?;
    let answer: Answer = read_word(stream, WORD_BYTES_MAX).await?;
    match answer.code {
        0 => {}
        2 => return Err(Refusal::Cluster { ours: cluster, theirs: ClusterId(answer.cluster) }.into()),
        5 => return Err(Refusal::Removed(own).into()),
        6 => return Err(Refusal::Replaced(own).into()),
        code => return Err(Refusal::Other(code).into()),
    }
    let AboutWord { about } = read_word(stream, ABOUT_BYTES_MAX).await?;
    let (node, cluster) = (NodeId(answer.node), ClusterId(answer.cluster));
    Ok(About { node, cluster, incarnation: answer.incarnation, about })
}

/// How to write to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The highest version that both speak.
    pub version: u32,
    /// The longest frame that the peer takes.
    pub frame_bytes_max: usize,
}

/// Introduces this node on a dialed stream and returns how to write to the peer, if it is the one that was meant.
pub(crate) async fn introduce(
    stream: &mut dyn Stream,
    own: &Identity<'_>,
    to: NodeId,
    lane: Lane,
    door: &Arc<dyn Doorkeeper>,
) -> Result<Agreed, HandshakeError> {
    let hello = Hello {
        version_min: own.versions.0,
        version_max: own.versions.1,
        cluster: own.cluster.0,
        from: own.node.0,
        to: to.0,
        lane: lane as u32,
        incarnation: own.incarnation,
        enquires: false,
        addresses: fitting(own.addresses),
    };
    write_word(stream, &hello).await?;
    let answer: Answer = read_word(stream, WORD_BYTES_MAX).await?;
    let here = NodeId(answer.node);
    let same_cluster = check(own, answer.cluster, (answer.version_min, answer.version_max));
    match answer.code {
        0 => same_cluster?,
        3 => return Err(Refusal::Target { wanted: to, here }.into()),
        4 => return Err(Refusal::SameId(own.node).into()),
        5 => return Err(Refusal::Removed(own.node).into()),
        6 => return Err(Refusal::Replaced(own.node).into()),
        code => return Err(same_cluster.err().unwrap_or(Refusal::Other(code)).into()),
    }
    if here != to {
        return Err(Refusal::Target { wanted: to, here }.into());
    }
    if !recognises(door, here, answer.incarnation).await? {
        return Err(Refusal::Replaced(here).into());
    }
    Ok(Agreed {
        version: own.versions.1.min(answer.version_max),
        frame_bytes_max: usize::try_from(answer.frame_bytes_max).unwrap_or(usize::MAX),
    })
}

/// Hears a dialer out on an accepted stream, answers, and returns who it is and for which lane it came.
pub(crate) async fn receive(
    stream: &mut dyn Stream,
    own: &Identity<'_>,
    removed: impl FnOnce(NodeId) -> bool,
    door: &Arc<dyn Doorkeeper>,
) -> Result<Arrival, HandshakeError> {
    let hello: Hello = read_word(stream, WORD_BYTES_MAX).await?;
    let from = NodeId(hello.from);
    let lane = Lane::ALL.into_iter().find(|lane| *lane as u32 == hello.lane);
    let mut verdict = match () {
        // One that enquires may not know yet of which cluster it will be.
        () if hello.enquires && hello.cluster == 0 => Ok(()),
        () if hello.enquires => check(own, hello.cluster, (hello.version_min, hello.version_max)),
        () => check(own, hello.cluster, (hello.version_min, hello.version_max)).and_then(|()| {
            if hello.to != own.node.0 {
                Err(Refusal::Target { wanted: NodeId(hello.to), here: own.node })
            } else if from == own.node {
                Err(Refusal::SameId(own.node))
            } else {
                Ok(())
            }
        }),
    };
    if verdict.is_ok() && removed(from) {
        verdict = Err(Refusal::Removed(from));
    }
    if verdict.is_ok() {
        if !hello.enquires && !door.admits(from) {
            return Err(HandshakeError::Unwelcome(from));
        }
        let recognised = if hello.enquires {
            !door.knows_otherwise(from, hello.incarnation)
        } else {
            recognises(door, from, hello.incarnation).await?
        };
        if !recognised {
            verdict = Err(Refusal::Replaced(from));
        }
    }
    let answer = Answer {
        code: verdict.err().map_or(0, Refusal::code),
        version_min: own.versions.0,
        version_max: own.versions.1,
        cluster: own.cluster.0,
        node: own.node.0,
        frame_bytes_max: own.frame_bytes_max as u64,
        incarnation: own.incarnation,
    };
    write_word(stream, &answer).await?;
    if let Err(refusal) = verdict {
        // The dialer reads the reason before it sees the end.
        let _ = stream.shutdown().await;
        return Err(refusal.into());
    }
    if hello.enquires {
        write_word(stream, &AboutWord { about: door.about() }).await?;
        let _ = stream.shutdown().await;
        return Ok(Arrival::Enquiry);
    }
    let lane = lane.ok_or(HandshakeError::Foreign("it asks for an unknown lane"))?;
    Ok(Arrival::Peer(from, lane, hello.addresses))
}

/// The first of the addresses, as many as a word has room for.
fn fitting(addresses: &[String]) -> Vec<String> {
    let mut bytes = 0;
    let fits = |address: &&String| {
        bytes += address.len();
        bytes <= ADDRESS_BYTES_MAX
    };
    addresses.iter().take_while(fits).cloned().collect()
}

fn check(own: &Identity<'_>, cluster: u64, theirs: (u32, u32)) -> Result<(), Refusal> {
    let ours = own.versions;
    if ours.0 > theirs.1 || theirs.0 > ours.1 {
        return Err(Refusal::Version { ours, theirs });
    }
    let theirs = ClusterId(cluster);
    if theirs != own.cluster {
        return Err(Refusal::Cluster { ours: own.cluster, theirs });
    }
    Ok(())
}

async fn write_word(stream: &mut dyn Stream, message: &impl Message) -> io::Result<()> {
    stream.write_all(&word(message)).await?;
    stream.flush().await
}

fn word(message: &impl Message) -> BytesMut {
    let body = message.encode_to_vec();
    let mut word = BytesMut::with_capacity(PREFIX_BYTES + body.len());
    word.put_slice(&MAGIC);
    word.put_u32_le(crc32fast::hash(&body));
    word.put_u32_le(u32::try_from(body.len()).expect("a word is short"));
    word.put_slice(&body);
    word
}

async fn read_word<T: Message + Default>(
    stream: &mut dyn Stream,
    bytes_max: usize,
) -> Result<T, HandshakeError> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut filled = 0;
    // Looks at what came so far, so that a foreign client that then waits for us is told apart at once.
    while filled < PREFIX_BYTES {
        let read = stream.read(&mut prefix[filled..]).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += read;
        let seen = filled.min(MAGIC.len());
        if prefix[..seen] != MAGIC[..seen] {
            return Err(HandshakeError::Foreign(guess(&prefix[..filled])));
        }
    }
    let mut fields = &prefix[MAGIC.len()..];
    let (crc, length) = (fields.get_u32_le(), fields.get_u32_le() as usize);
    if length > bytes_max {
        return Err(HandshakeError::Foreign("its handshake is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if crc32fast::hash(&body) != crc {
        return Err(HandshakeError::Foreign("its handshake has a wrong checksum"));
    }
    T::decode(&*body).map_err(|_| HandshakeError::Foreign("its handshake is malformed"))
}

fn guess(bytes: &[u8]) -> &'static str {
    const HTTP: [&[u8]; 7] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"PRI ", b"HTTP", b"OPTI"];
    if HTTP.iter().any(|start| bytes.starts_with(start)) {
        "it speaks HTTP (is this the client port's address, or a client on the peer port?)"
    } else if bytes.starts_with(&[0x16, 0x03]) {
        "it speaks TLS, and this connection is without"
    } else if bytes.starts_with(&[0x15, 0x03]) || bytes.starts_with(&[0, 0]) {
        "it speaks another protocol (TLS or HTTP/2)"
    } else {
        "its first bytes are not a handshake"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Identity<'_> = Identity {
        node: NodeId(2),
        cluster: ClusterId(7),
        versions: (1, 1),
        frame_bytes_max: 1024,
        incarnation: 0,
        addresses: &[],
    };

    /// Knows one data directory of everybody.
    #[derive(Debug)]
    struct Strict;

    impl Doorkeeper for Strict {
        fn recognises(&self, _: NodeId, incarnation: u64) -> io::Result<bool> {
            Ok(incarnation != 13)
        }

        fn knows_otherwise(&self, _: NodeId, incarnation: u64) -> bool {
            incarnation == 13
        }

        fn about(&self) -> bytes::Bytes {
            vec![b'x'; 4096].into()
        }
    }

    fn strict() -> Arc<dyn Doorkeeper> {
        Arc::new(Strict)
    }

    async fn meet(
        dialer: Identity<'_>,
        to: NodeId,
        acceptor: Identity<'_>,
    ) -> (Result<Agreed, HandshakeError>, Result<(NodeId, Lane), HandshakeError>) {
        let (mut left, mut right) = tokio::io::duplex(4096);
        let strict = strict();
        tokio::join!(introduce(&mut left, &dialer, to, Lane::Bulk, &strict), async {
            match receive(&mut right, &acceptor, |node| node == NodeId(99), &strict).await? {
                Arrival::Peer(node, lane, _) => Ok((node, lane)),
                Arrival::Enquiry => panic!("nobody enquired"),
            }
        })
    }

    #[tokio::test]
    async fn who_enquires_is_told_whatever_cluster_it_thinks_it_is_of() {
        let (mut left, mut right) = tokio::io::duplex(8192);
        let door = strict();
        let (asked, answered) = tokio::join!(
            enquire(&mut left, (NodeId(0), ClusterId(0)), 0),
            receive(&mut right, &OWN, |_| false, &door)
        );
        let about = asked.unwrap();
        assert_eq!((about.node, about.cluster, about.about.len()), (NodeId(2), ClusterId(7), 4096));
        assert!(matches!(answered, Ok(Arrival::Enquiry)));
        for (node, refusal) in
            [(NodeId(5), Refusal::Replaced(NodeId(5))), (NodeId(99), Refusal::Removed(NodeId(99)))]
        {
            let (mut left, mut right) = tokio::io::duplex(8192);
            let removed = |node| node == NodeId(99);
            let (asked, _) = tokio::join!(
                enquire(&mut left, (node, OWN.cluster), 13),
                receive(&mut right, &OWN, removed, &door)
            );
            assert!(matches!(asked, Err(HandshakeError::Refused(told)) if told == refusal), "{refusal}");
        }
    }

    fn refusals(
        (dialer, acceptor): (Result<Agreed, HandshakeError>, Result<(NodeId, Lane), HandshakeError>),
    ) -> (Refusal, Refusal) {
        match (dialer, acceptor) {
            (Err(HandshakeError::Refused(dialer)), Err(HandshakeError::Refused(acceptor))) => {
                (dialer, acceptor)
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_meet() {
        let (dialer, acceptor) = meet(Identity { node: NodeId(1), ..OWN }, NodeId(2), OWN).await;
        assert_eq!(dialer.unwrap(), Agreed { version: 1, frame_bytes_max: 1024 });
        assert_eq!(acceptor.unwrap(), (NodeId(1), Lane::Bulk));
        let wide = Identity { node: NodeId(1), versions: (1, 9), ..OWN };
        let (dialer, acceptor) = meet(wide, NodeId(2), OWN).await;
        assert!(acceptor.is_ok(), "ranges that overlap are enough");
        assert_eq!(dialer.unwrap().version, 1, "the highest that both know");
        let newer = Identity { versions: (1, 3), ..OWN };
        assert_eq!(meet(wide, NodeId(2), newer).await.0.unwrap().version, 3);
        assert_eq!(meet(Identity { node: NodeId(1), ..OWN }, NodeId(2), newer).await.0.unwrap().version, 1);
    }

    #[tokio::test]
    async fn every_mismatch_is_told_to_both() {
        let one = Identity { node: NodeId(1), ..OWN };
        let (ours, theirs) = (ClusterId(8), ClusterId(7));
        assert_eq!(
            refusals(meet(Identity { cluster: ours, ..one }, NodeId(2), OWN).await),
            (Refusal::Cluster { ours, theirs }, Refusal::Cluster { ours: theirs, theirs: ours })
        );
        assert_eq!(
            refusals(meet(Identity { versions: (2, 3), ..one }, NodeId(2), OWN).await),
            (
                Refusal::Version { ours: (2, 3), theirs: (1, 1) },
                Refusal::Version { ours: (1, 1), theirs: (2, 3) }
            )
        );
        let target = Refusal::Target { wanted: NodeId(3), here: NodeId(2) };
        assert_eq!(refusals(meet(one, NodeId(3), OWN).await), (target, target));
        let same = Refusal::SameId(NodeId(2));
        assert_eq!(refusals(meet(OWN, NodeId(2), OWN).await), (same, same));
        let removed = Refusal::Removed(NodeId(99));
        assert_eq!(
            refusals(meet(Identity { node: NodeId(99), ..OWN }, NodeId(2), OWN).await),
            (removed, removed)
        );
        let replaced = Refusal::Replaced(NodeId(1));
        assert_eq!(
            refusals(meet(Identity { incarnation: 13, ..one }, NodeId(2), OWN).await),
            (replaced, replaced)
        );
    }

    #[tokio::test]
    async fn one_that_is_known_by_another_data_directory_is_not_talked_to() {
        let one = Identity { node: NodeId(1), ..OWN };
        let (dialer, acceptor) = meet(one, NodeId(2), Identity { incarnation: 13, ..OWN }).await;
        assert!(acceptor.is_ok(), "it lost its disk, and knows nobody");
        match dialer {
            Err(HandshakeError::Refused(told)) => assert_eq!(told, Refusal::Replaced(NodeId(2))),
            other => panic!("{other:?}"),
        }
    }

    /// Notes somebody only once it is told to go on.
    #[derive(Debug)]
    struct Slow(parking_lot::Mutex<std::sync::mpsc::Receiver<()>>);

    impl Doorkeeper for Slow {
        fn recognises(&self, _: NodeId, _: u64) -> io::Result<bool> {
            let told = self.0.lock().recv_timeout(std::time::Duration::from_secs(5));
            told.map(|()| true).map_err(io::Error::other)
        }

        fn knows_otherwise(&self, _: NodeId, _: u64) -> bool {
            false
        }

        fn about(&self) -> bytes::Bytes {
            bytes::Bytes::new()
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_its_time_delays_nobody_else_on_the_thread() {
        let (go_on, told) = std::sync::mpsc::channel();
        let door: Arc<dyn Doorkeeper> = Arc::new(Slow(parking_lot::Mutex::new(told)));
        let (mut left, mut right) = tokio::io::duplex(4096);
        let one = Identity { node: NodeId(1), ..OWN };
        let meet = async {
            tokio::join!(introduce(&mut left, &one, NodeId(2), Lane::Bulk, &door), async {
                let received = receive(&mut right, &OWN, |_| false, &door).await;
                drop(right);
                received
            })
        };
        let notice = async {
            for _ in 0..2 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                let _ = go_on.send(());
            }
        };
        let ((dialer, acceptor), ()) = tokio::join!(meet, notice);
        assert!(dialer.is_ok() && acceptor.is_ok(), "{dialer:?} {acceptor:?}");
    }

    #[tokio::test]
    async fn one_that_is_not_admitted_hears_nothing() {
        #[derive(Debug)]
        struct Shut;

        impl Doorkeeper for Shut {
            fn recognises(&self, _: NodeId, _: u64) -> io::Result<bool> {
                panic!("it is not noted either");
            }

            fn admits(&self, _: NodeId) -> bool {
                false
            }

            fn knows_otherwise(&self, _: NodeId, _: u64) -> bool {
                false
            }

            fn about(&self) -> bytes::Bytes {
                bytes::Bytes::new()
            }
        }

        let (door, open): (Arc<dyn Doorkeeper>, Arc<dyn Doorkeeper>) = (Arc::new(Shut), Arc::new(OpenDoor));
        let (mut left, mut right) = tokio::io::duplex(4096);
        let one = Identity { node: NodeId(1), ..OWN };
        let (dialer, acceptor) =
            tokio::join!(introduce(&mut left, &one, NodeId(2), Lane::Bulk, &open), async {
                let received = receive(&mut right, &OWN, |_| false, &door).await;
                drop(right);
                received
            });
        assert!(matches!(acceptor, Err(HandshakeError::Unwelcome(NodeId(1)))), "{acceptor:?}");
        assert!(matches!(dialer, Err(HandshakeError::Io(_))), "{dialer:?}");
    }

    #[tokio::test]
    async fn a_dialer_says_where_it_is_reached_as_far_as_there_is_room() {
        let addresses = ["one.example:2380".to_owned(), "x".repeat(ADDRESS_BYTES_MAX - 16), "y".to_owned()];
        let one = Identity { node: NodeId(1), addresses: &addresses, ..OWN };
        let (mut left, mut right) = tokio::io::duplex(4096);
        let door = strict();
        let (dialer, acceptor) = tokio::join!(
            introduce(&mut left, &one, NodeId(2), Lane::Bulk, &door),
            receive(&mut right, &OWN, |_| false, &door)
        );
        assert!(dialer.is_ok());
        match acceptor.unwrap() {
            Arrival::Peer(NodeId(1), Lane::Bulk, said) => assert_eq!(said, addresses[..2]),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn foreign_bytes_are_named() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP"),
            (&[0x16, 3, 1, 2, 0][..], "TLS"),
            (&b"xxxxx"[..], "not a handshake"),
            (&b"CONCLAVE\0\0\0\0\xff\xff\xff\xff"[..], "too long"),
            (&b"CONCLAVE\x01\0\0\0\x01\0\0\0a"[..], "checksum"),
        ] {
            let (mut left, mut right) = tokio::io::duplex(4096);
            left.write_all(bytes).await.unwrap();
            let door: Arc<dyn Doorkeeper> = Arc::new(OpenDoor);
            let error = receive(&mut right, &OWN, |_| false, &door).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_first_word_never_changes() {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            cluster: 0xc1,
            from: 1,
            to: 2,
            lane: 1,
            ..Hello::default()
        };
        let hex: String = word(&hello).iter().map(|byte| format!("{byte:02x}")).collect();
        let prefix = "434f4e434c415645a7f9663121000000";
        let body = "0801100119c1000000000000002101000000000000002902000000000000003001";
        assert_eq!(hex, [prefix, body].concat());
    }
}
