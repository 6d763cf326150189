//! Nothing: the tests are the package.

#![forbid(unsafe_code)]
