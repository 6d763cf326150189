//! How a change of membership fails.

use conclave_consensus::{ChangeError, NodeId};

use crate::ProposeError;

/// Why a change of membership was not made, or is not known to have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconfigureError {
    /// Only the leader takes changes, and the host forwards none; certain not to have happened.
    #[error("not the leader")]
    NotLeader {
        /// The leader's node, if known.
        leader: Option<NodeId>,
    },
    /// The leader has not committed an entry of its own term; certain not to have happened.
    #[error("the leader does not serve yet")]
    NotServing,
    /// Another change is under way; certain not to have happened.
    #[error("another change of membership is under way")]
    InProgress,
    /// A learner lacks too much to be made a voter; certain not to have happened.
    #[error("the learner lacks too much to vote")]
    LearnerNotReady,
    /// The change is impossible.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It may have happened or may happen yet.
    #[error("outcome unknown")]
    Unknown,
    /// Leadership changed under it; certain not to have happened.
    #[error("leader changed")]
    Dropped,
    /// There is no such group here.
    #[error("no such group")]
    NoGroup,
    /// The node is shutting down; it may have happened.
    #[error("stopped")]
    Stopped,
    /// Too much is in flight; certain not to have happened.
    #[error("too many requests")]
    Busy,
}

/// What became of the entry that decides the change: an entry is lost as any proposal is.
impl From<ProposeError> for ReconfigureError {
    fn from(why: ProposeError) -> Self {
        match why {
            ProposeError::Busy => Self::Busy,
            ProposeError::NoLeader => Self::NotLeader { leader: None },
            ProposeError::LeaderChanged | ProposeError::TooLarge => Self::Dropped,
            ProposeError::Unknown => Self::Unknown,
            ProposeError::NoGroup => Self::NoGroup,
            ProposeError::Stopped => Self::Stopped,
        }
    }
}
