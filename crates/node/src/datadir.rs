//! The data directory: one running node at a time, one member of one cluster for good.
//!
//! ```text
//! <data-dir>/LOCK       held (flock) for as long as a node runs on the directory
//! <data-dir>/IDENTITY   JSON: format, cluster, member, and what it started from; written once, synced
//! <data-dir>/PEERS      JSON: by which data directory each other member is known
//! <data-dir>/…          what the node's stores keep
//! ```
//!
//! A directory is refused, untouched, where it is etcd's, another cluster's or member's, a newer format's, or
//! holds files of unknown origin. The lock goes with the process, also when it is killed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use conclave_consensus::Quorums;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Config;
use crate::config::url::Url;
use crate::engine::Engine;
use crate::identity::{self, Bootstrap, Identity, IdentityError, Peer};

/// The layout of the directory that this version writes and reads.
pub const FORMAT: u32 = 2;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";

/// What may lie in a directory that holds no identity yet: the remains of a first start that was cut short.
const REMAINS: [&str; 3] = [LOCK, IDENTITY_NEW, "lost+found"];

/// A data directory held by this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a directory cannot be a node's data directory.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process has the lock.
    #[error("the data directory {} is locked by a running node", .0.display())]
    Locked(PathBuf),
    /// etcd's own data.
    #[error(
        "{} is a data directory of etcd; conclave has a format of its own and does not read it: give another --data-dir",
        .0.display()
    )]
    Etcd(PathBuf),
    /// Files that no node wrote.
    #[error("the data directory {} holds no conclave data but is not empty (it has {found:?})", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// The identity file does not read.
    #[error("the identity file {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory was written by a version with another layout.
    #[error(
        "the data directory {} has format {found}; this version of conclave reads format {FORMAT}",
        .path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The flags describe no member.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory belongs to another cluster.
    #[error(
        "the data directory {} belongs to cluster {found:x} (member {name:?}), not to cluster {expected:x} that the flags describe",
        .path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: u64,
        /// The name of the member that wrote it.
        name: String,
        /// The configured cluster.
        expected: u64,
    },
    /// The directory's data is another engine's.
    #[error(
        "the data directory {} holds the data of a cluster that runs on {found}; it cannot be run with --engine {configured}",
        .path.display()
    )]
    OtherEngine {
        /// The directory.
        path: PathBuf,
        /// The engine that wrote it.
        found: Engine,
        /// The one that was asked for.
        configured: Engine,
    },
    /// The directory's cluster has quorums of other sizes.
    #[error(
        "the data directory {} is of a cluster that was not founded with --elect-quorum={} and --commit-quorum={}: sizes of quorums count when a \
         cluster is founded, leave them out",
        .path.display(), .configured.elect, .configured.commit
    )]
    OtherQuorums {
        /// The directory.
        path: PathBuf,
        /// The sizes that were asked for.
        configured: Quorums,
    },
    /// The directory belongs to another member of the cluster.
    #[error(
        "the data directory {} belongs to member {found:x} ({name:?}) of this cluster, not to member {expected:x}",
        .path.display()
    )]
    OtherMember {
        /// The directory.
        path: PathBuf,
        /// Its member.
        found: u64,
        /// That member's name.
        name: String,
        /// The configured member.
        expected: u64,
    },
}

/// The contents of the identity file. Ids are hexadecimal texts: JSON numbers lose precision beyond 2⁵³.
#[derive(Debug, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    #[serde(default)]
    cluster_id: String,
    #[serde(default = "first_engine")]
    engine: String,
    #[serde(default)]
    member_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    token: String,
    #[serde(default)]
    founding: bool,
    #[serde(default)]
    replica: String,
    #[serde(default)]
    elect_quorum: u8,
    /// Zero for a majority, as the other.
    #[serde(default)]
    commit_quorum: u8,
    #[serde(default)]
    incarnation: String,
    #[serde(default)]
    members: Vec<MemberFile>,
}

/// What a directory holds that names none: there was one engine once.
fn first_engine() -> String {
    Engine::Raft.name().to_owned()
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberFile {
    id: String,
    name: String,
    peer_urls: Vec<String>,
    /// Empty where it was not noted.
    #[serde(default)]
    replica: String,
}

/// Reads what a member that has started before started from, and compares it with its flags. `None` for a directory that is yet to be
/// made. Changes nothing.
///
/// The flags that describe the cluster count only at the first start, as in etcd: members come and go after it. What must agree is the
/// cluster's token and the member's name.
///
/// # Errors
/// Where the directory cannot be this node's.
pub fn standing(path: &Path, config: &Config) -> Result<Option<Bootstrap>, DataDirError> {
    refuse_etcd(path)?;
    if !path.is_dir() {
        return Ok(None);
    }
    refuse_foreign(path)?;
    let Some(found) = read_identity(path)? else { return Ok(None) };
    let bootstrap = found.bootstrap(path)?;
    found.compare(path, &bootstrap, config)?;
    Ok(Some(bootstrap))
}

impl DataDir {
    /// Creates the directory where it is missing, locks it, and checks or records whose it is. Durable when it
    /// returns.
    ///
    /// # Errors
    /// See [`DataDirError`]; nothing of the directory's contents has been changed then.
    pub fn open(path: &Path, bootstrap: &Bootstrap, config: &Config) -> Result<Self, DataDirError> {
        let created = create(path)?;
        if !created {
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        match read_identity(path)? {
            // Another may have come between, before the lock was taken.
            Some(found) => {
                let standing = found.bootstrap(path)?;
                if standing.identity != bootstrap.identity || standing.incarnation != bootstrap.incarnation {
                    return Err(DataDirError::Locked(path.to_owned()));
                }
            }
            None => write_identity(path, bootstrap, config)?,
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { action, path: path.to_owned(), source }
}

fn refuse_etcd(path: &Path) -> Result<(), DataDirError> {
    let member = path.join("member");
    if member.join("snap").exists() || member.join("wal").exists() {
        return Err(DataDirError::Etcd(path.to_owned()));
    }
    Ok(())
}

/// Whether the directory had to be created. Its name in its parent is synced, or a power cut could take it.
fn create(path: &Path) -> Result<bool, DataDirError> {
    if path.is_dir() {
        return Ok(false);
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path).map_err(failed("create the data directory", path))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sync_directory(parent)?;
    Ok(true)
}

fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    if path.join(IDENTITY).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(failed("read the data directory", path))?;
    for entry in entries {
        let found = entry.map_err(failed("read the data directory", path))?.file_name();
        let found = found.to_string_lossy();
        if !REMAINS.contains(&found.as_ref()) {
            return Err(DataDirError::Foreign { path: path.to_owned(), found: found.into_owned() });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(failed("open the lock file", &file))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => {
            Err(DataDirError::Io { action: "lock the data directory by", path: file, source })
        }
    }
}

fn read_identity(path: &Path) -> Result<Option<IdentityFile>, DataDirError> {
    let file = path.join(IDENTITY);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(DataDirError::Damaged { path: file, reason: error.to_string() });
        }
        Err(error) => return Err(failed("read the identity file", &file)(error)),
    };
    let identity: IdentityFile = serde_json::from_str(&text)
        .map_err(|error| DataDirError::Damaged { path: file, reason: error.to_string() })?;
    if identity.format != FORMAT {
        return Err(DataDirError::Format { path: path.to_owned(), found: identity.format });
    }
    Ok(Some(identity))
}

impl IdentityFile {
    fn of(bootstrap: &Bootstrap, config: &Config) -> Self {
        let member = |peer: &Peer| MemberFile {
            id: format!("{:x}", peer.id),
            name: peer.name.clone(),
            peer_urls: peer.peer_urls.iter().map(ToString::to_string).collect(),
            replica: format!("{:x}", peer.replica),
        };
        Self {
            format: FORMAT,
            cluster_id: format!("{:x}", bootstrap.identity.cluster_id),
            engine: config.engine.name().to_owned(),
            member_id: format!("{:x}", bootstrap.identity.member_id),
            name: config.name.clone(),
            token: config.initial_cluster_token.clone(),
            founding: bootstrap.founding,
            replica: format!("{:x}", bootstrap.replica),
            elect_quorum: bootstrap.quorums.map_or(0, |sizes| sizes.elect),
            commit_quorum: bootstrap.quorums.map_or(0, |sizes| sizes.commit),
            incarnation: format!("{:x}", bootstrap.incarnation),
            members: bootstrap.members.iter().map(member).collect(),
        }
    }

    fn bootstrap(&self, path: &Path) -> Result<Bootstrap, DataDirError> {
        let damaged = |reason: String| DataDirError::Damaged { path: path.join(IDENTITY), reason };
        let id = |text: &str| {
            u64::from_str_radix(text, 16)
                .ok()
                .filter(|id| *id > 0)
                .ok_or_else(|| damaged(format!("{text:?} is not an id")))
        };
        let member = |member: &MemberFile| {
            let urls = member.peer_urls.iter().map(|url| Url::parse(url));
            let peer_urls = urls.collect::<Result<_, _>>().map_err(|error| damaged(error.to_string()))?;
            let replica = u64::from_str_radix(&member.replica, 16).unwrap_or_default();
            Ok::<_, DataDirError>(Peer { id: id(&member.id)?, name: member.name.clone(), peer_urls, replica })
        };
        let mut members = self.members.iter().map(member).collect::<Result<Vec<_>, _>>()?;
        if self.founding {
            identity::number_founders(&mut members);
        }
        Ok(Bootstrap {
            identity: Identity { cluster_id: id(&self.cluster_id)?, member_id: id(&self.member_id)? },
            members,
            founding: self.founding,
            replica: id(&self.replica)?,
            quorums: self.quorums(),
            incarnation: id(&self.incarnation)?,
        })
    }

    fn quorums(&self) -> Option<Quorums> {
        let (elect, commit) = (self.elect_quorum, self.commit_quorum);
        (elect > 0 && commit > 0).then_some(Quorums { elect, commit })
    }

    fn compare(&self, path: &Path, found: &Bootstrap, config: &Config) -> Result<(), DataDirError> {
        let engine = Engine::named(&self.engine).ok_or_else(|| DataDirError::Damaged {
            path: path.join(IDENTITY),
            reason: format!("{:?} is no engine", self.engine),
        })?;
        if engine != config.engine {
            let (path, configured) = (path.to_owned(), config.engine);
            return Err(DataDirError::OtherEngine { path, found: engine, configured });
        }
        if let Some(configured) = config.quorums
            && found.quorums != Some(configured)
        {
            return Err(DataDirError::OtherQuorums { path: path.to_owned(), configured });
        }
        if self.token == config.initial_cluster_token && self.name == config.name {
            return Ok(());
        }
        let described = identity::bootstrap(config)?.identity;
        if self.token != config.initial_cluster_token {
            return Err(DataDirError::OtherCluster {
                path: path.to_owned(),
                found: found.identity.cluster_id,
                name: self.name.clone(),
                expected: described.cluster_id,
            });
        }
        Err(DataDirError::OtherMember {
            path: path.to_owned(),
            found: found.identity.member_id,
            name: self.name.clone(),
            expected: described.member_id,
        })
    }
}

/// After a crash the file is whole or absent.
fn write_identity(path: &Path, bootstrap: &Bootstrap, config: &Config) -> Result<(), DataDirError> {
    let contents = IdentityFile::of(bootstrap, config);
    let aside = path.join(IDENTITY_NEW);
    replace(&aside, &path.join(IDENTITY), &contents).map_err(failed("write the identity file", &aside))?;
    sync_directory(path)
}

/// Writes JSON aside, syncs it and gives it its name, so that the file is whole or as it was. The name lasts once the directory is synced.
pub(crate) fn replace(aside: &Path, file: &Path, contents: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(contents)?;
    text.push(b'\n');
    let mut out = File::create(aside)?;
    out.write_all(&text)?;
    out.sync_all()?;
    fs::rename(aside, file)
}

fn sync_directory(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::url::parse_members;

    fn config(name: &str, token: &str) -> Config {
        Config {
            name: name.to_owned(),
            initial_cluster: parse_members("m1=http://h:1,m2=http://h:2").unwrap(),
            initial_cluster_token: token.to_owned(),
            ..Config::default()
        }
    }

    /// As a node opens it.
    fn open(path: &Path, config: &Config) -> Result<DataDir, DataDirError> {
        let bootstrap = match standing(path, config)? {
            Some(bootstrap) => bootstrap,
            None => identity::bootstrap(config)?,
        };
        DataDir::open(path, &bootstrap, config)
    }

    fn refusal(path: &Path, config: &Config) -> String {
        let error = open(path, config).expect_err("refused").to_string();
        error.replace(&path.display().to_string(), "DIR")
    }

    #[test]
    fn a_directory_is_created_and_found_again_as_it_was_made() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let me = config("m1", "t");
        assert!(standing(&path, &me).unwrap().is_none());
        let bootstrap = identity::bootstrap(&me).unwrap();
        drop(DataDir::open(&path, &bootstrap, &me).unwrap());
        // The list of members counts only at the first start.
        let later = Config { initial_cluster: parse_members("m1=http://h:9").unwrap(), ..me };
        assert_eq!(standing(&path, &later).unwrap(), Some(bootstrap));
        drop(open(&path, &later).unwrap());
    }

    #[test]
    fn sizes_of_quorums_are_those_of_the_founding() {
        let root = tempfile::tempdir().unwrap();
        let sizes = |elect, commit| Some(Quorums { elect, commit });
        let me = Config { engine: Engine::Paxos, quorums: sizes(2, 1), ..config("m1", "t") };
        drop(open(root.path(), &me).unwrap());
        let later = Config { quorums: None, ..me.clone() };
        assert_eq!(
            standing(root.path(), &later).unwrap().unwrap().quorums,
            sizes(2, 1),
            "kept, not asked for again"
        );
        assert_eq!(standing(root.path(), &me).unwrap().unwrap().quorums, sizes(2, 1));
        expect_test::expect!["the data directory DIR is of a cluster that was not founded with --elect-quorum=2 and --commit-quorum=2: sizes of quorums count when a cluster is founded, leave them out"]
            .assert_eq(&refusal(root.path(), &Config { quorums: sizes(2, 2), ..me }));
    }

    #[test]
    fn two_nodes_never_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let me = config("m1", "t");
        let held = open(root.path(), &me).unwrap();
        assert_eq!(refusal(root.path(), &me), "the data directory DIR is locked by a running node");
        drop(held);
        drop(open(root.path(), &me).unwrap());
        let another = Bootstrap { incarnation: 1, ..identity::bootstrap(&me).unwrap() };
        assert!(DataDir::open(root.path(), &another, &me).is_err(), "made by another that came between");
    }

    #[test]
    fn a_first_start_cut_short_is_taken_up() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(LOCK), "").unwrap();
        fs::write(root.path().join(IDENTITY_NEW), "{\"form").unwrap();
        drop(open(root.path(), &config("m1", "t")).unwrap());
    }

    #[test]
    fn directories_of_others_are_refused_untouched() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let me = config("m1", "t");
        fs::create_dir_all(path("etcd/member/wal")).unwrap();
        fs::create_dir_all(path("foreign")).unwrap();
        fs::write(path("foreign").join("photo.png"), "x").unwrap();
        drop(open(&path("mine"), &me).unwrap());
        for (name, identity) in [
            ("damaged", "\u{0}"),
            ("newer", "{\"format\": 7, \"shards\": []}"),
            ("ids", "{\"format\": 2, \"cluster_id\": \"?\"}"),
        ] {
            fs::create_dir_all(path(name)).unwrap();
            fs::write(path(name).join(IDENTITY), identity).unwrap();
        }
        fs::write(path("file"), "x").unwrap();
        let refusals = [
            refusal(&path("etcd"), &me),
            refusal(&path("foreign"), &me),
            refusal(&path("mine"), &config("m1", "u")),
            refusal(&path("mine"), &config("m2", "t")),
            refusal(&path("mine"), &Config { engine: Engine::Paxos, ..config("m1", "t") }),
            refusal(&path("damaged"), &me),
            refusal(&path("newer"), &me),
            refusal(&path("ids"), &me),
            refusal(&path("file"), &me),
        ]
        .join("\n");
        expect_test::expect![[r#"
            DIR is a data directory of etcd; conclave has a format of its own and does not read it: give another --data-dir
            the data directory DIR holds no conclave data but is not empty (it has "photo.png")
            the data directory DIR belongs to cluster 4ce1c53721500d10 (member "m1"), not to cluster 7ee1aa1863bc5fdb that the flags describe
            the data directory DIR belongs to member a82626a823adb5c ("m1") of this cluster, not to member 94216ff6ab85f4d4
            the data directory DIR holds the data of a cluster that runs on raft; it cannot be run with --engine paxos
            the identity file DIR/IDENTITY is damaged: expected value at line 1 column 1
            the data directory DIR has format 7; this version of conclave reads format 2
            the identity file DIR/IDENTITY is damaged: "?" is not an id
            cannot create the data directory DIR: File exists (os error 17)"#]].assert_eq(&refusals);
        assert_eq!(fs::read_dir(path("etcd")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(path("foreign")).unwrap().count(), 1);
    }
}
