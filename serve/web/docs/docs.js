// The viewer would send the document's address to a validator elsewhere: it is told of none.
window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
