//! Stories: scripts that a group of cores plays, and the transcript of what they then say, want and become.
//!
//! A story is a text. What it asks for stands in it beside what comes of it, so that a file of a catalogue is both the script and the golden
//! transcript: [`play`] reads the first, writes the second anew, and whoever compares the two sees every difference. Nothing in it is of one
//! engine but the words in which messages are [described](Engine::describe).
//!
//! ```text
//! # What is to be seen, in prose.
//! given group of 3 voters           as `>`, but played without a word
//! > propose 2 at 1                  what happens …
//!   1→2 append t1 after 1/1 …       … what was said and wanted, in order: dropped and written anew
//!   = 1 leads t1, serving; …        … and the state of each replica that is not as it was
//! ```
//!
//! # What can happen
//! | command | |
//! |---|---|
//! | `group of N voters, M learners, WORD …` | the first one; learners and words, which the engine knows, may be missing |
//! | `elect R` | it stands until it serves, everything arriving and synced |
//! | `time out R` | two election timeouts pass at once, and it is stepped |
//! | `skip N ms`, `tick R` | time passes at once; a replica is stepped |
//! | `wait N ms` | time passes, everything arriving and synced meanwhile and everyone stepped when due |
//! | `settle` | everything arrives and is synced, until nothing is under way |
//! | `deliver from A to B`, `lose from A to B` | all messages under way there |
//! | `cut from A to B`, `isolate R`, `heal` | links that lose everything: one, all of a replica's, none |
//! | `hang R`, `resume R`, `sync R` | a disk that syncs nothing, does again, does once |
//! | `crash R`, `boot R` | what was not synced is gone |
//! | `propose N at R`, `read MODE at R`, `transfer from R to S` | `quorum`, `lease` or `follower` |
//! | `change at R: CHANGE, …` | `add-voter NODE`, `add-learner NODE`, `promote R`, `remove R` |
//! | `checkpoint R`, `fetch R` | a checkpoint of everything applied is durable; the snapshot that it fetches arrives |
//! | `nodes live N ms` | from here on the hosts hear of each other each heartbeat, and believe it for so long |
//!
//! # Invariants
//! 1. One story, one engine: one transcript, bit for bit.
//! 2. A transcript that shows two entries chosen at a slot, or one delivered before it was durable there, is none: the story fails.

mod disk;
mod group;
mod script;
mod show;

use crate::{Boot, Consensus, Message, ReplicaId, Slot, StepError};

use group::Group;
pub use script::ScriptError;

/// The engine that plays.
pub trait Engine {
    /// Boots a replica with the default timing; `words` are those of the story's group.
    ///
    /// # Errors
    /// In words, if it cannot.
    fn boot(&self, boot: Boot, words: &[String]) -> Result<Box<dyn Consensus>, String>;

    /// What a message says, in one line that names sender and receiver.
    fn describe(&self, message: &Message) -> String;
}

/// Why a story has no transcript.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoryError {
    /// A line that is none.
    #[error("line {line}: {why}")]
    Script {
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        why: ScriptError,
    },
    /// The first command makes the group, and no other does.
    #[error("line {0}: the group comes first, and once")]
    Group(usize),
    /// There is no such replica.
    #[error("there is no replica {0}")]
    NoReplica(ReplicaId),
    /// A replica could not boot.
    #[error("replica {replica} does not boot: {why}")]
    Boot {
        /// Which.
        replica: ReplicaId,
        /// What the engine said.
        why: String,
    },
    /// A core found itself broken.
    #[error("replica {replica}: {why}")]
    Broken {
        /// Which.
        replica: ReplicaId,
        /// What it said.
        why: StepError,
    },
    /// The replica was never elected, or messages went round without end.
    #[error("never came to rest, or to a leader")]
    Endless,
    /// Two entries chosen at a slot.
    #[error("replica {replica} delivers another entry at slot {slot} than was chosen there")]
    Chosen {
        /// Who shows it.
        replica: ReplicaId,
        /// Where.
        slot: Slot,
    },
    /// Delivered before it was durable.
    #[error("replica {replica} delivers slot {slot}, which its disk does not hold")]
    NotDurable {
        /// Who.
        replica: ReplicaId,
        /// What.
        slot: Slot,
    },
}

/// Plays the story in `text` and gives the text as it should be: prose and commands as they stand, and what comes of them.
///
/// # Errors
/// See [`StoryError`].
pub fn play(engine: &dyn Engine, text: &str) -> Result<String, StoryError> {
    let mut group: Option<Group<'_>> = None;
    let mut transcript = String::new();
    for (line, words) in (1..).zip(text.lines()) {
        let (quiet, command) = match words.split_at_checked(2) {
            _ if words.is_empty() || words.starts_with('#') => {
                transcript += words;
                transcript.push('\n');
                continue;
            }
            Some(("> ", command)) => (false, command),
            Some(("  ", _)) => continue,
            _ => match words.strip_prefix("given ") {
                Some(command) => (true, command),
                None => return Err(StoryError::Script { line, why: ScriptError::NoCommand }),
            },
        };
        transcript += words;
        transcript.push('\n');
        let command = script::parse(command).map_err(|why| StoryError::Script { line, why })?;
        match (&mut group, command) {
            (none @ None, script::Command::Group { voters, learners, words }) => {
                *none = Some(Group::new(engine, voters, learners, words)?);
            }
            (None, _) | (Some(_), script::Command::Group { .. }) => return Err(StoryError::Group(line)),
            (Some(group), command) => group.play(&command)?,
        }
        if let Some(group) = &mut group {
            for said in group.take_transcript() {
                if !quiet {
                    transcript += "  ";
                    transcript += &said;
                    transcript.push('\n');
                }
            }
        }
    }
    Ok(transcript)
}
