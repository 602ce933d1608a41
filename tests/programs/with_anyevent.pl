# Programs that use AnyEvent::RabbitMQ, which sends the protocol header of AMQP 0-9, can publish with confirms and consume.
use strict;
use warnings;
use AnyEvent::RabbitMQ;

my ($user, $password, $host, $port, $vhost) = $ENV{AMQP_URL} =~ m{^amqp://([^:]+):([^@]+)@([^:/]+):(\d+)(?:/(.*))?$};
$vhost = defined $vhost && length $vhost ? $vhost =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ger : "/";
my $done = AnyEvent->condvar;
my $timer = AnyEvent->timer(after => 60, cb => sub { $done->croak("nothing came") });
my @failing = (on_failure => sub { $done->croak("failed: @_") });

sub consume {
    my ($channel) = @_;
    my @got;
    $channel->consume(
        queue => "anyevent.work", no_ack => 0, @failing,
        on_consume => sub {
            my ($message) = @_;
            push @got, $message->{body}->payload . "/" . $message->{header}->headers->{number};
            $channel->ack(delivery_tag => $message->{deliver}->method_frame->delivery_tag);
            $done->send(join " ", @got) if @got == 3;
        },
    );
}

my $connection = AnyEvent::RabbitMQ->new->load_xml_spec->connect(
    host => $host, port => $port, user => $user, pass => $password, vhost => $vhost, timeout => 30, @failing,
    on_close => sub { $done->croak("the broker closed the connection") },
    on_success => sub {
        my ($connection) = @_;
        $connection->open_channel(@failing, on_close => sub { $done->croak("the broker closed the channel") }, on_success => sub {
            my ($channel) = @_;
            $channel->confirm(@failing, on_success => sub {
                $channel->declare_queue(queue => "anyevent.work", durable => 1, @failing, on_success => sub {
                    my $confirmed = 0;
                    for my $number (0 .. 2) {
                        $channel->publish(
                            routing_key => "anyevent.work", body => "job $number", header => { headers => { number => $number } },
                            on_ack => sub { consume($channel) if ++$confirmed == 3 },
                        );
                    }
                });
            });
        });
    },
);
my $got = $done->recv;
$got eq "job 0/0 job 1/1 job 2/2" or die "got $got";
