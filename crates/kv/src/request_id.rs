//! How a client names a request, so that a repetition of it can be told from another request.

use std::{fmt, str::FromStr};

/// A client, by the 128 bits that it chose at random when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u128);

/// A request of a client, which numbers its requests upwards. As text: 32 hexadecimal digits, a hyphen, a decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Whose request.
    pub client: ClientId,
    /// Which of them.
    pub sequence: u64,
}

/// A text that names no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 32 hexadecimal digits, a hyphen and a decimal number below 2^64")]
pub struct MalformedRequestId;

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}", self.client.0, self.sequence)
    }
}

impl FromStr for RequestId {
    type Err = MalformedRequestId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (client, sequence) = text.split_once('-').ok_or(MalformedRequestId)?;
        // Numbers alone would also be read with a sign.
        let is_hex = client.len() == 32 && client.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_decimal = sequence.bytes().all(|byte| byte.is_ascii_digit());
        if !is_hex || !is_decimal {
            return Err(MalformedRequestId);
        }
        let client = u128::from_str_radix(client, 16).map_err(|_| MalformedRequestId)?;
        let sequence = sequence.parse().map_err(|_| MalformedRequestId)?;
        Ok(Self { client: ClientId(client), sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_ids_name_each_other() {
        for (client, sequence) in [(0, 0), (1, 7), (u128::MAX, u64::MAX)] {
            let id = RequestId { client: ClientId(client), sequence };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let id: RequestId = "000000000000000000000000000000Ff-18".parse().unwrap();
        assert_eq!((id.client, id.sequence), (ClientId(255), 18));
    }

    #[test]
    fn other_texts_are_refused() {
        let hex = "0123456789abcdef0123456789abcdef";
        let texts = ["", "-", "7", "-7", "ff-7"].map(str::to_owned).into_iter();
        let tails = ["", "-", "7", "--7", "-+7", "- 7", "-7 ", "-7-7", "-x", "-18446744073709551616", "0-7"];
        for text in texts.chain(tails.map(|tail| format!("{hex}{tail}"))) {
            assert_eq!(text.parse::<RequestId>(), Err(MalformedRequestId), "{text:?}");
        }
        for client in [
            "+123456789abcdef0123456789abcdef0",
            "g123456789abcdef0123456789abcdef",
            "é123456789abcdef0123456789abcde",
        ] {
            assert!(format!("{client}-7").parse::<RequestId>().is_err(), "{client}");
        }
    }
}
