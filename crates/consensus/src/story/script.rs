//! The commands of a story, read.

use std::time::Duration;

use crate::{MembershipChange, NodeId, ReadMode, ReplicaId};

/// Something that is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Group { voters: u64, learners: u64, words: Vec<String> },
    Elect(ReplicaId),
    TimeOut(ReplicaId),
    Skip(Duration),
    Tick(ReplicaId),
    Wait(Duration),
    Settle,
    Deliver { from: ReplicaId, to: ReplicaId },
    Lose { from: ReplicaId, to: ReplicaId },
    Cut { from: ReplicaId, to: ReplicaId },
    Isolate(ReplicaId),
    Heal,
    Hang(ReplicaId),
    Resume(ReplicaId),
    Sync(ReplicaId),
    Crash(ReplicaId),
    Boot(ReplicaId),
    Propose { count: u64, at: ReplicaId },
    Read { mode: ReadMode, at: ReplicaId },
    Transfer { from: ReplicaId, to: ReplicaId },
    Change { at: ReplicaId, changes: Vec<MembershipChange> },
    Checkpoint(ReplicaId),
    Fetch(ReplicaId),
    NodesLive(Duration),
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It begins with nothing that a line can begin with.
    #[error("neither prose, nor a command, nor what came of one")]
    NoCommand,
    /// No command reads so.
    #[error("no command reads `{0}`")]
    Unknown(String),
    /// A number was expected.
    #[error("`{0}` is no number")]
    Number(String),
}

pub(super) fn parse(text: &str) -> Result<Command, ScriptError> {
    let unknown = || ScriptError::Unknown(text.to_owned());
    let spaced = text.replace(',', " , ").replace(':', " : ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    Ok(match words[..] {
        ["group", "of", voters, "voters", ref rest @ ..] => {
            let mut learners = 0;
            let mut words = Vec::new();
            for part in rest.split(|word| *word == ",") {
                match part {
                    [] => {}
                    [count, "learner" | "learners"] => learners = number(count)?,
                    [word] => words.push((*word).to_owned()),
                    _ => return Err(unknown()),
                }
            }
            Command::Group { voters: number(voters)?, learners, words }
        }
        ["elect", at] => Command::Elect(replica(at)?),
        ["time", "out", at] => Command::TimeOut(replica(at)?),
        ["skip", span, "ms"] => Command::Skip(millis(span)?),
        ["tick", at] => Command::Tick(replica(at)?),
        ["wait", span, "ms"] => Command::Wait(millis(span)?),
        ["settle"] => Command::Settle,
        ["deliver", "from", from, "to", to] => Command::Deliver { from: replica(from)?, to: replica(to)? },
        ["lose", "from", from, "to", to] => Command::Lose { from: replica(from)?, to: replica(to)? },
        ["cut", "from", from, "to", to] => Command::Cut { from: replica(from)?, to: replica(to)? },
        ["isolate", at] => Command::Isolate(replica(at)?),
        ["heal"] => Command::Heal,
        ["hang", at] => Command::Hang(replica(at)?),
        ["resume", at] => Command::Resume(replica(at)?),
        ["sync", at] => Command::Sync(replica(at)?),
        ["crash", at] => Command::Crash(replica(at)?),
        ["boot", at] => Command::Boot(replica(at)?),
        ["propose", count, "at", at] => Command::Propose { count: number(count)?, at: replica(at)? },
        ["read", mode, "at", at] => {
            let mode = match mode {
                "quorum" => ReadMode::Quorum,
                "lease" => ReadMode::Lease,
                "follower" => ReadMode::Follower,
                _ => return Err(unknown()),
            };
            Command::Read { mode, at: replica(at)? }
        }
        ["transfer", "from", from, "to", to] => Command::Transfer { from: replica(from)?, to: replica(to)? },
        ["change", "at", at, ":", ref changes @ ..] => {
            let change = |part: &[&str]| match part {
                ["add-voter", node] => Ok(MembershipChange::AddVoter(NodeId(number(node)?))),
                ["add-learner", node] => Ok(MembershipChange::AddLearner(NodeId(number(node)?))),
                ["promote", at] => Ok(MembershipChange::Promote(replica(at)?)),
                ["remove", at] => Ok(MembershipChange::Remove(replica(at)?)),
                _ => Err(unknown()),
            };
            let changes = changes.split(|word| *word == ",").map(change).collect::<Result<_, _>>()?;
            Command::Change { at: replica(at)?, changes }
        }
        ["checkpoint", at] => Command::Checkpoint(replica(at)?),
        ["fetch", at] => Command::Fetch(replica(at)?),
        ["nodes", "live", span, "ms"] => Command::NodesLive(millis(span)?),
        _ => return Err(unknown()),
    })
}

fn number(word: &str) -> Result<u64, ScriptError> {
    word.parse().map_err(|_| ScriptError::Number(word.to_owned()))
}

fn replica(word: &str) -> Result<ReplicaId, ScriptError> {
    number(word).map(ReplicaId)
}

fn millis(word: &str) -> Result<Duration, ScriptError> {
    number(word).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_learners_and_words_or_not() {
        let group = |voters, learners, words: &[&str]| Command::Group {
            voters,
            learners,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        assert_eq!(parse("group of 3 voters"), Ok(group(3, 0, &[])));
        assert_eq!(parse("group of 3 voters, 1 learner, sleepy"), Ok(group(3, 1, &["sleepy"])));
    }

    #[test]
    fn changes_stand_in_a_row() {
        let changes = vec![MembershipChange::AddVoter(NodeId(4)), MembershipChange::Remove(ReplicaId(3))];
        assert_eq!(
            parse("change at 1: add-voter 4, remove 3"),
            Ok(Command::Change { at: ReplicaId(1), changes })
        );
    }

    #[test]
    fn what_is_no_command_is_told() {
        assert_eq!(parse("dance"), Err(ScriptError::Unknown("dance".to_owned())));
        assert_eq!(parse("elect everyone"), Err(ScriptError::Number("everyone".to_owned())));
        assert_eq!(parse("change at 1:"), Err(ScriptError::Unknown("change at 1:".to_owned())));
    }
}
