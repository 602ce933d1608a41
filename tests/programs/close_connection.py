"""close_connection.py NAME: close the connections that have this name, through the management API."""

import json
import os
import sys
import time
import urllib.request


def close_connections(name: str) -> None:
    api = os.environ["MANAGEMENT_URL"] + "/api/connections"
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, api, "guest", "guest")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    closed = 0
    while not closed:  # RabbitMQ's API lists a connection only some seconds after it was opened
        for each in json.load(opener.open(api)):
            if each.get("client_properties", {}).get("connection_name") == name:
                request = urllib.request.Request(f"{api}/{urllib.request.quote(each['name'])}", method="DELETE")
                opener.open(request).close()
                closed += 1
        time.sleep(0.1)


if __name__ == "__main__":
    close_connections(sys.argv[1])
