// Publish messages as programs that use RabbitMQ's Java client do.
import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.MessageProperties;
import java.math.BigDecimal;
import java.util.Arrays;
import java.util.Date;
import java.util.Map;
import java.util.TreeMap;

public class Publish {
    public static void main(String[] arguments) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(System.getenv("AMQP_URL"));
        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            Map<String, Object> headers = new TreeMap<>();
            headers.put("text", "grün");
            headers.put("int", 1);
            headers.put("long", 5L);
            headers.put("short", (short) -300);
            headers.put("byte", (byte) -5);
            headers.put("float", 1.5f);
            headers.put("double", 2.5);
            headers.put("yes", true);
            headers.put("none", null);
            headers.put("time", new Date(1769860800000L));
            headers.put("decimal", new BigDecimal("1.50"));
            headers.put("bytes", new byte[] {-1, 0});
            headers.put("list", Arrays.asList(1, 2L, "three", null));
            headers.put("table", Map.of("deep", Map.of("deeper", -300L)));
            AMQP.BasicProperties full = new AMQP.BasicProperties(
                "text/plain", "utf-8", headers, 2, 4, "c-1", "replies", "3600000", "m-1", new Date(1769860800000L),
                "order.created", null, "shop", null);
            channel.basicPublish("", "corpus", null, "hello".getBytes());
            channel.basicPublish("", "corpus", MessageProperties.PERSISTENT_TEXT_PLAIN, "hello".getBytes());
            channel.basicPublish("", "corpus", full, new byte[] {-1, 0});
        }
    }
}
