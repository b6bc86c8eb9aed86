// A broadcast server on npm `ws`, written as its documentation shows it: what Tidegate is compared with.
// Each message goes to all other connections; on the path /echo it returns to its sender alone.
// Usage: node server.js PORT [--deflate]. Port 0 takes a free one; the last line printed names it.
'use strict';

const { WebSocketServer, WebSocket } = require('ws');

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: Number(process.argv[2] ?? 0),
  backlog: 4096,
  maxPayload: 16 * 1024 * 1024,
  perMessageDeflate: process.argv.includes('--deflate'),
});

server.on('connection', (socket, request) => {
  const echoes = request.url === '/echo';
  socket.on('error', () => socket.terminate());
  socket.on('message', (data, binary) => {
    if (echoes) {
      socket.send(data, { binary });
      return;
    }
    for (const other of server.clients) {
      if (other !== socket && other.readyState === WebSocket.OPEN) other.send(data, { binary });
    }
  });
});

server.on('listening', () => console.log(`listening on ${server.address().port}`));
