//! Captures: file formats, link types, finding RTP, `inspect` as a program, tshark beside it. Every
//! capture is made here, byte by byte, by code that shares nothing with what it tests.

mod files;
mod find;
mod hostile;
mod links;
mod program;
mod replay;
mod support;
mod tshark;
mod write;
