#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;

use super::*;

fn links() -> (Arc<Link>, UnixStream, Arc<Link>, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (
        Link::new(here.try_clone().unwrap()),
        here,
        Link::new(there.try_clone().unwrap()),
        there,
    )
}

/// Deals with what comes until the other end is gone.
fn pump(link: &Arc<Link>, mut socket: UnixStream) -> thread::JoinHandle<ChannelError> {
    let link = Arc::clone(link);
    thread::spawn(move || {
        loop {
            if let Err(error) = link.receive(&mut socket) {
                return error;
            }
        }
    })
}

#[test]
fn a_stream_carries_more_than_its_window_and_ends() {
    let (here, near, there, far) = links();
    let mut inlet = there.open(7).unwrap();
    let _unread = here.open(7).unwrap();
    let (pump_near, pump_far) = (pump(&here, near.try_clone().unwrap()), pump(&there, far));
    let sent: Vec<u8> = (0..3 * WINDOW).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let sender = thread::spawn(move || {
        here.write(7, &sent).unwrap();
        here.end(7).unwrap();
    });
    let mut got = Vec::new();
    inlet.read_to_end(&mut got).unwrap();
    assert!(got == expected);
    sender.join().unwrap();
    near.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(pump_near.join().unwrap(), ChannelError::Gone));
    pump_far.join().unwrap();
}

#[test]
fn who_sends_beyond_the_window_is_cut_off() {
    let (here, _near, there, mut far) = links();
    let _inlet = there.open(1).unwrap();
    let sender = thread::spawn(move || {
        for _ in 0..=WINDOW / MAX_PIECE {
            here.put(&Frame::Data(1, vec![0; MAX_PIECE])).unwrap();
        }
    });
    let error = loop {
        if let Err(error) = there.receive(&mut far) {
            break error;
        }
    };
    assert!(matches!(error, ChannelError::Protocol(_)), "{error}");
    drop(far);
    drop(sender);
}

#[test]
fn bytes_for_a_stream_that_nobody_opened_are_refused() {
    let (here, _near, there, mut far) = links();
    here.put(&Frame::Data(9, vec![1])).unwrap();
    assert!(matches!(
        there.receive(&mut far),
        Err(ChannelError::Protocol(_))
    ));
}

#[test]
fn a_reader_that_waits_learns_that_the_other_end_is_gone() {
    let (here, near, there, far) = links();
    let mut inlet = there.open(1).unwrap();
    let waiting = thread::spawn(move || inlet.read(&mut [0; 8]));
    drop((here, near));
    let error = pump(&there, far).join().unwrap();
    assert!(matches!(error, ChannelError::Gone));
    assert!(waiting.join().unwrap().is_err());
}

#[test]
fn a_stream_that_nobody_reads_any_more_holds_up_nobody() {
    let (here, near, there, far) = links();
    drop(there.open(1).unwrap());
    let _unread = here.open(1).unwrap();
    let pumps = (pump(&here, near.try_clone().unwrap()), pump(&there, far));
    here.write(1, &vec![0; 4 * WINDOW]).unwrap();
    near.shutdown(std::net::Shutdown::Both).unwrap();
    pumps.0.join().unwrap();
    pumps.1.join().unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_refused_and_frames_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(frame) = Frame::read(&mut &bytes[..]) {
            let again = frame.bytes().unwrap();
            prop_assert_eq!(&bytes[..again.len()], &again[..]);
        }
    }
}
