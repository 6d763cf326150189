//! The consensus engines, as the node's flag names them.

/// What a node's `--engine` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Raft.
    #[default]
    Raft,
    /// Multi-Paxos.
    Paxos,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 2] = [Engine::Raft, Engine::Paxos];

    /// As the flag names it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Raft => "raft",
            Engine::Paxos => "paxos",
        }
    }

    /// The engine of that name.
    pub fn named(name: &str) -> Option<Engine> {
        Engine::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// The node's flag.
    pub fn flag(self) -> String {
        format!("--engine={}", self.name())
    }
}
