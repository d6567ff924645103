import io.aeron.Aeron;
import io.aeron.FragmentAssembler;
import io.aeron.Publication;
import io.aeron.Subscription;
import io.aeron.driver.Configuration;
import io.aeron.driver.MediaDriver;
import io.aeron.driver.ThreadingMode;
import io.aeron.logbuffer.FragmentHandler;
import io.aeron.protocol.DataHeaderFlyweight;
import org.agrona.concurrent.BackoffIdleStrategy;
import org.agrona.concurrent.UnsafeBuffer;

/**
 * Aeron over aeron:ipc as its samples use it: offer() until it is taken, poll(); its own defaults but for the driver's directory, and for the driver's
 * threads, of which there is one (the others serve the network). The driver is embedded in the end that receives channel 0; the other end finds it.
 */
final class AeronEnds implements Bench.Library {
    private static final long CONNECT_LIMIT_NS = 10_000_000_000L;
    private final Bench.Options options;
    private final Aeron aeron;

    AeronEnds(Bench.Options options) {
        this.options = options;
        String directory = options.text("memory_directory") + "/aeron";
        String role = options.text("role");
        if (role.equals("echo") || role.equals("sink") || role.equals("watch")) {
            MediaDriver.launch(new MediaDriver.Context().aeronDirectoryName(directory).threadingMode(ThreadingMode.SHARED));
        }
        aeron = Aeron.connect(new Aeron.Context().aeronDirectoryName(directory));
    }

    public Bench.Sender sender(int channel) {
        Publication publication = aeron.addExclusivePublication("aeron:ipc", 1 + channel);
        long deadline = System.nanoTime() + CONNECT_LIMIT_NS;
        while (!publication.isConnected()) {
            if (System.nanoTime() > deadline) throw new IllegalStateException("no subscriber of channel " + channel + " within 10 s");
            Thread.onSpinWait();
        }
        UnsafeBuffer buffer = new UnsafeBuffer(new byte[0]);
        return (value, length) -> {
            if (buffer.byteArray() != value) buffer.wrap(value);
            long done;
            while ((done = publication.offer(buffer, 0, length)) < 0) {
                if (done != Publication.BACK_PRESSURED && done != Publication.ADMIN_ACTION) throw new IllegalStateException(Publication.errorString(done));
                Thread.onSpinWait();
            }
        };
    }

    public Bench.Receiver receiver(int channel, int most) {
        Subscription subscription = aeron.addSubscription("aeron:ipc", 1 + channel);
        return new Bench.Receiver() {
            private final byte[] value = new byte[Math.max(8, options.number("value_bytes"))];
            private Bench.Taker taker;
            private int taken; // poll() counts fragments, of which a large record has many
            private final FragmentHandler each = (buffer, offset, length, header) -> {
                buffer.getBytes(offset, value, 0, length);
                taken++;
                taker.take(value, length);
            };
            private final FragmentHandler handler =
                value.length > Configuration.ipcMtuLength() - DataHeaderFlyweight.HEADER_LENGTH ? new FragmentAssembler(each) : each;

            public int poll(Bench.Taker taker) {
                this.taker = taker;
                taken = 0;
                subscription.poll(handler, most);
                return taken;
            }
        };
    }

    /** Agrona's and the driver's own default: spin a little, yield a little, park for 1 us and twice that each time, to 1 ms. */
    public Bench.Idle sleeping() {
        BackoffIdleStrategy strategy = new BackoffIdleStrategy();
        return new Bench.Idle() {
            public void idle() {
                strategy.idle();
            }

            public void reset() {
                strategy.reset();
            }
        };
    }
}
