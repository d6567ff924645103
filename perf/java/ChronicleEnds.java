import net.openhft.chronicle.bytes.Bytes;
import net.openhft.chronicle.bytes.SyncMode;
import net.openhft.chronicle.queue.ChronicleQueue;
import net.openhft.chronicle.queue.ExcerptAppender;
import net.openhft.chronicle.queue.ExcerptTailer;
import net.openhft.chronicle.queue.impl.single.SingleChronicleQueueBuilder;
import net.openhft.chronicle.threads.Pauser;
import net.openhft.chronicle.wire.DocumentContext;

/** Chronicle Queue (the open one) with its defaults, on the disk: an excerpt a record, raw bytes in it. flush() is msync() of what was appended. */
final class ChronicleEnds implements Bench.Library {
    private final Bench.Options options;
    private final boolean durable;

    ChronicleEnds(Bench.Options options) {
        this.options = options;
        durable = options.text("role").equals("committer");
    }

    private ChronicleQueue open(int channel) {
        SingleChronicleQueueBuilder builder = SingleChronicleQueueBuilder.single(options.text("directory") + "/queue." + channel);
        return (durable ? builder.syncMode(SyncMode.SYNC) : builder).build();
    }

    public Bench.Sender sender(int channel) {
        ExcerptAppender appender = open(channel).createAppender();
        return new Bench.Sender() {
            public void send(byte[] value, int length) {
                try (DocumentContext document = appender.writingDocument()) {
                    document.wire().bytes().write(value, 0, length);
                }
            }

            public void flush() {
                if (durable) appender.sync();
            }
        };
    }

    public Bench.Receiver receiver(int channel, int most) {
        ExcerptTailer tailer = open(channel).createTailer();
        byte[] value = new byte[Math.max(8, options.number("value_bytes"))];
        return taker -> {
            int taken = 0;
            for (; taken < most; taken++) {
                int length;
                try (DocumentContext document = tailer.readingDocument()) {
                    if (!document.isPresent()) break;
                    Bytes<?> bytes = document.wire().bytes();
                    length = (int) bytes.readRemaining();
                    bytes.read(value, 0, length);
                }
                taker.take(value, length);
            }
            return taken;
        };
    }

    /** What Chronicle's own services wait by: busy, then yielding, then pauses to 20 ms. */
    public Bench.Idle sleeping() {
        Pauser pauser = Pauser.balanced();
        return new Bench.Idle() {
            public void idle() {
                pauser.pause();
            }

            public void reset() {
                pauser.reset();
            }
        };
    }
}
